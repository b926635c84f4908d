//! What runs have seen: whoever runs the swarm asks for what it is meant to see, lest it checks
//! nothing.

macro_rules! seen {
    ($($name:ident $text:literal,)*) => {
        /// What runs have seen.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Seen { $(#[doc = concat!("How many ", $text, ".")] pub $name: u64,)* }

        impl Seen {
            /// Both together.
            #[must_use]
            pub const fn and(self, other: Self) -> Self {
                Self { $($name: self.$name + other.$name,)* }
            }

            /// Each class of events and how many there were.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$(($text, self.$name),)*]
            }
        }
    };
}

seen! {
    worlds "worlds",
    virtual_millis "virtual milliseconds",
    leader_changes "elections",
    truncations "truncated logs",
    torn_records "torn tails",
    lost_writes "lost writes without an answer",
    acknowledged "acknowledged writes",
    repeats "repeated operations",
    reads "reads",
    lease_reads "reads asked for by lease",
    leases "leases",
    rejected "rejected requests",
    superseded "superseded proposals",
    unknown "unknown outcomes",
    crashes "crashes",
    kills "kills",
    pauses "pauses",
    cuts "partitions",
    one_way_cuts "one-way cuts",
    storms "storms",
    transfers "transfers",
    disk_failures "failed disks",
    full_disks "full disks",
    stalls "stalled disks",
    destroyed "lost disks",
    damaged "damaged bits",
    damaged_restarts "restarts with damaged records",
    repairs "repaired logs",
    stored_reads "stored reads",
    purges "purges",
    snapshots_made "snapshots made",
    snapshots_sent "snapshots sent",
    snapshots_broken "snapshot transfers broken",
    snapshots_resumed "snapshot transfers resumed",
    chunks_damaged "damaged pieces of snapshots",
    snapshots_installed "snapshots installed",
    given_back "messages that were not sent",
    store_flushes "stores written out",
    store_audits "stores read back",
    damaged_stores "damaged stores",
    lost_states "states given back by others",
    membership_changes "membership changes",
    joint_changes "joint memberships",
    members_joined "members joined",
}
