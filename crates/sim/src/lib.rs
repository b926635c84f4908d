//! The false world: network, disk, clock, faults; the checkers; the labs.
