//! Part 2D: snapshots, and servers that need them.
//!
//! A server makes a snapshot every ten commands. What it keeps of the log must stay small all the
//! time: see [`Keeps::Commands`](super::Keeps).

use kontiki_raft::NodeId;

use super::lab::{Done, Lab};

/// Rounds of each test.
const ROUNDS: u64 = 30;

/// Commands that are started in a round.
const STARTS: u64 = 11;

/// What happens to the victim of a round.
#[derive(Clone, Copy, Debug, Default)]
struct How {
    is_cut: bool,
    is_unreliable: bool,
    is_crashed: bool,
}

/// Nothing goes wrong.
pub(super) fn basic(lab: &mut Lab) -> Done {
    rounds(lab, How::default())
}

/// The victim is cut off, and has to be caught up by a snapshot.
pub(super) fn install(lab: &mut Lab) -> Done {
    rounds(lab, How { is_cut: true, ..How::default() })
}

/// The same over a bad network.
pub(super) fn install_unreliable(lab: &mut Lab) -> Done {
    rounds(lab, How { is_cut: true, is_unreliable: true, ..How::default() })
}

/// The victim crashes.
pub(super) fn install_crash(lab: &mut Lab) -> Done {
    rounds(lab, How { is_crashed: true, ..How::default() })
}

/// The same over a bad network.
pub(super) fn install_unreliable_crash(lab: &mut Lab) -> Done {
    rounds(lab, How { is_crashed: true, is_unreliable: true, ..How::default() })
}

fn rounds(lab: &mut Lab, how: How) -> Done {
    lab.set_unreliable(how.is_unreliable);
    lab.world.start_all()?;
    let nodes = lab.nodes();
    lab.one(nodes, true)?;
    let mut leader = lab.check_one_leader()?;
    for round in 0..ROUNDS {
        let next = lab.after(leader, 1);
        // Every third round it is the leader that is away.
        let (victim, sender) = if round % 3 == 1 { (leader, next) } else { (next, leader) };
        if how.is_cut {
            lab.cut(victim);
        } else if how.is_crashed {
            lab.crash(victim);
        }
        let is_away = how.is_cut || how.is_crashed;
        let present = if is_away { nodes - 1 } else { nodes };
        if is_away {
            lab.one(present, true)?;
        }
        start_some(lab, sender)?;
        lab.one(present, true)?;
        lab.check_sizes()?;
        if is_away {
            if how.is_crashed {
                lab.start(victim)?;
            }
            lab.heal(victim);
            lab.one(nodes, true)?;
            leader = lab.check_one_leader()?;
        }
    }
    if is_pointless(lab, how) {
        return Err(lab.failure("nobody was given a snapshot"));
    }
    Ok(())
}

fn start_some(lab: &mut Lab, sender: NodeId) -> Done {
    for _ in 0..STARTS {
        lab.submit(sender)?;
    }
    Ok(())
}

/// A server that was away for so long cannot have come back without a snapshot.
fn is_pointless(lab: &Lab, how: How) -> bool {
    (how.is_cut || how.is_crashed) && lab.world.snapshots.installed == 0
}

/// All servers crash and come back, again and again: the numbers of commands go on.
pub(super) fn all_crash(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let nodes = lab.nodes();
    lab.one(nodes, true)?;
    for _ in 0..ROUNDS {
        let leader = lab.check_one_leader()?;
        start_some(lab, leader)?;
        let before = lab.one(nodes, true)?;
        lab.check_sizes()?;
        for id in lab.world.node_ids() {
            lab.crash(id);
        }
        lab.start_and_heal_all()?;
        let after = lab.one(nodes, true)?;
        if after <= before {
            return Err(lab.failure(format!("command {after} comes after command {before}")));
        }
    }
    Ok(())
}

/// Servers restart right after a snapshot: the log goes on where it was.
pub(super) fn init(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let nodes = lab.nodes();
    let mut last = 0;
    for count in [STARTS, 1, STARTS] {
        for _ in 0..count {
            let number = lab.one(nodes, true)?;
            if number <= last {
                return Err(lab.failure(format!("command {number} comes after command {last}")));
            }
            last = number;
        }
        for id in lab.world.node_ids() {
            lab.crash(id);
        }
        lab.start_and_heal_all()?;
    }
    lab.one(nodes, true)?;
    lab.check_sizes()
}
