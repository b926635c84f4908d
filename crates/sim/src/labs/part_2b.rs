//! Part 2B: log replication.

use std::time::Duration;

use kontiki_raft::NodeId;

use super::lab::{Done, ELECTION_TIMEOUT, Lab, Place};

/// Three commands, each on all servers at the first try, at 1, 2 and 3.
pub(super) fn basic_agree(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    for number in 1..=3 {
        lab.check_not_committed(number)?;
        let agreed = lab.one(lab.nodes(), false)?;
        if agreed != number {
            return Err(lab.failure(format!("command {number} was agreed on as {agreed}")));
        }
    }
    Ok(())
}

/// Each command is sent to each peer once: ten of 5,000 bytes.
pub(super) fn rpc_bytes(lab: &mut Lab) -> Done {
    const COMMAND_BYTES: usize = 5_000;
    const SENT_BYTES: u64 = 50_000;
    lab.world.start_all()?;
    lab.one(lab.nodes(), false)?;
    let before = lab.bytes();
    for number in 2..12 {
        let agreed = lab.one_padded(lab.nodes(), false, COMMAND_BYTES)?;
        if agreed != number {
            return Err(lab.failure(format!("command {number} was agreed on as {agreed}")));
        }
    }
    let used = lab.bytes() - before;
    let allowed = lab.nodes() * SENT_BYTES + 50_000;
    if allowed < used {
        return Err(lab.failure(format!("{used} bytes on the network, {allowed} allowed")));
    }
    Ok(())
}

/// With one follower gone there is agreement; with both gone there is none.
pub(super) fn follower_failure(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let rest = lab.nodes() - 1;
    lab.one(lab.nodes(), false)?;
    let leader = lab.check_one_leader()?;
    lab.cut(lab.after(leader, 1));
    lab.one(rest, false)?;
    lab.sleep(ELECTION_TIMEOUT)?;
    lab.one(rest, false)?;

    let leader = lab.check_one_leader()?;
    lab.cut(lab.after(leader, 1));
    lab.cut(lab.after(leader, 2));
    let place = submit_to_leader(lab, leader)?;
    if place.number != 4 {
        return Err(lab.failure(format!("expected command 4, got {}", place.number)));
    }
    lab.sleep(2 * ELECTION_TIMEOUT)?;
    lab.check_not_committed(place.number)
}

/// With the leader gone the others go on; with the second leader gone nothing is committed.
pub(super) fn leader_failure(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let rest = lab.nodes() - 1;
    lab.one(lab.nodes(), false)?;
    let leader = lab.check_one_leader()?;
    lab.cut(leader);
    lab.one(rest, false)?;
    lab.sleep(ELECTION_TIMEOUT)?;
    lab.one(rest, false)?;

    let leader = lab.check_one_leader()?;
    lab.cut(leader);
    for id in lab.world.node_ids() {
        lab.submit(id)?;
    }
    lab.sleep(2 * ELECTION_TIMEOUT)?;
    lab.check_not_committed(4)
}

/// A follower that was away catches up, and the others do not wait for it.
pub(super) fn fail_agree(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let rest = lab.nodes() - 1;
    lab.one(lab.nodes(), false)?;
    let leader = lab.check_one_leader()?;
    let away = lab.after(leader, 1);
    lab.cut(away);
    lab.one(rest, false)?;
    lab.one(rest, false)?;
    lab.sleep(ELECTION_TIMEOUT)?;
    lab.one(rest, false)?;
    lab.one(rest, false)?;

    lab.heal(away);
    lab.one(lab.nodes(), true)?;
    lab.sleep(ELECTION_TIMEOUT)?;
    lab.one(lab.nodes(), true)?;
    Ok(())
}

/// With three of five gone nothing is committed; when they are back, all agree again.
pub(super) fn fail_no_agree(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.one(lab.nodes(), false)?;
    let leader = lab.check_one_leader()?;
    let away = [lab.after(leader, 1), lab.after(leader, 2), lab.after(leader, 3)];
    for id in away {
        lab.cut(id);
    }
    let place = submit_to_leader(lab, leader)?;
    if place.number != 2 {
        return Err(lab.failure(format!("expected command 2, got {}", place.number)));
    }
    lab.sleep(2 * ELECTION_TIMEOUT)?;
    lab.check_not_committed(place.number)?;

    for id in away {
        lab.heal(id);
    }
    // The others may have elected a leader that does not know of command 2.
    let leader = lab.check_one_leader()?;
    let place = submit_to_leader(lab, leader)?;
    if !(2..=3).contains(&place.number) {
        return Err(lab.failure(format!("expected command 2 or 3, got {}", place.number)));
    }
    lab.one(lab.nodes(), true)?;
    Ok(())
}

/// Five commands at once, given to one leader, are all committed.
pub(super) fn concurrent_starts(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    for attempt in 0..5 {
        if 0 < attempt {
            lab.sleep(Duration::from_secs(3))?;
        }
        let leader = lab.check_one_leader()?;
        if try_concurrent_starts(lab, leader)? {
            return Ok(());
        }
    }
    Err(lab.failure("the term changed too often"))
}

/// False if the term has changed in the meantime.
fn try_concurrent_starts(lab: &mut Lab, leader: NodeId) -> Done<bool> {
    let Some(first) = lab.submit(leader)? else { return Ok(false) };
    let mut places = Vec::new();
    for _ in 0..5 {
        match lab.submit(leader)? {
            Some(place) if place.term == first.term => places.push(place),
            _ => return Ok(false),
        }
    }
    let mut values = Vec::new();
    for place in &places {
        match lab.wait(place.number, lab.nodes(), Some(first.term))? {
            Some(value) => values.push(value),
            None => return Ok(false),
        }
    }
    match places.iter().find(|place| !values.contains(&place.value)) {
        Some(place) => Err(lab.failure(format!("command {} is missing", place.value))),
        None => Ok(true),
    }
}

/// A leader that comes back with commands that nobody else has gives them up.
pub(super) fn rejoin(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.one(lab.nodes(), true)?;
    let first = lab.check_one_leader()?;
    lab.cut(first);
    for _ in 0..3 {
        lab.submit(first)?;
    }
    lab.one(2, true)?;

    let second = lab.check_one_leader()?;
    lab.cut(second);
    lab.heal(first);
    lab.one(2, true)?;

    lab.heal(second);
    lab.one(lab.nodes(), true)?;
    Ok(())
}

/// Logs that differ by many entries are brought together fast.
pub(super) fn backup(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let nodes = lab.nodes();
    lab.one(nodes, true)?;

    // A leader and one follower, with much that will not be committed.
    let first = lab.check_one_leader()?;
    let others = [lab.after(first, 2), lab.after(first, 3), lab.after(first, 4)];
    for id in others {
        lab.cut(id);
    }
    submit_many(lab, first)?;
    lab.sleep(ELECTION_TIMEOUT / 2)?;
    lab.cut(first);
    lab.cut(lab.after(first, 1));

    // The other three, with much that will.
    for id in others {
        lab.heal(id);
    }
    for _ in 0..50 {
        lab.one(3, true)?;
    }

    // Another leader with one follower, and again much that will not.
    let second = lab.check_one_leader()?;
    let away = if others[0] == second { lab.after(second, 1) } else { others[0] };
    lab.cut(away);
    submit_many(lab, second)?;
    lab.sleep(ELECTION_TIMEOUT / 2)?;

    // The first leader, its follower, and the one that was away.
    for id in lab.world.node_ids() {
        lab.cut(id);
    }
    for id in [first, lab.after(first, 1), away] {
        lab.heal(id);
    }
    for _ in 0..50 {
        lab.one(3, true)?;
    }

    lab.heal_all();
    lab.one(nodes, true)?;
    Ok(())
}

/// The number of calls is bounded: for an election, for agreement, for doing nothing.
pub(super) fn count(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.check_one_leader()?;
    let used = lab.rpcs();
    if !(1..=30).contains(&used) {
        return Err(lab.failure(format!("{used} RPCs to elect the first leader, 1 to 30 allowed")));
    }
    let mut agreed = false;
    for attempt in 0..5 {
        if 0 < attempt {
            lab.sleep(Duration::from_secs(3))?;
        }
        let leader = lab.check_one_leader()?;
        if try_count(lab, leader)? {
            agreed = true;
            break;
        }
    }
    if !agreed {
        return Err(lab.failure("the term changed too often"));
    }

    let before = lab.rpcs();
    lab.sleep(ELECTION_TIMEOUT)?;
    let used = lab.rpcs() - before;
    if 3 * 20 < used {
        return Err(lab.failure(format!("{used} RPCs in an idle second, 60 allowed")));
    }
    Ok(())
}

/// False if the term has changed in the meantime.
fn try_count(lab: &mut Lab, leader: NodeId) -> Done<bool> {
    const WAITED: u64 = 10;
    let before = lab.rpcs();
    let Some(first) = lab.submit(leader)? else { return Ok(false) };
    let mut places: Vec<Place> = Vec::new();
    for step in 1..=WAITED + 1 {
        match lab.submit(leader)? {
            Some(place) if place.term == first.term => {
                if place.number != first.number + step {
                    return Err(lab.failure(format!("command {} has a gap before", place.number)));
                }
                places.push(place);
            }
            _ => return Ok(false),
        }
    }
    for place in places.iter().take(usize::try_from(WAITED).unwrap_or_default()) {
        match lab.wait(place.number, lab.nodes(), Some(first.term))? {
            Some(value) if value == place.value => {}
            Some(value) => {
                let number = place.number;
                return Err(lab.failure(format!("wrong value {value} as command {number}")));
            }
            None => return Ok(false),
        }
    }
    let used = lab.rpcs() - before;
    if lab.world.node_ids().any(|id| lab.term(id) != Some(first.term)) {
        return Ok(false);
    }
    let allowed = (WAITED + 1 + 3) * 3;
    if allowed < used {
        return Err(lab.failure(format!("{used} RPCs for {WAITED} agreements, {allowed} allowed")));
    }
    Ok(true)
}

fn submit_many(lab: &mut Lab, leader: NodeId) -> Done {
    for _ in 0..50 {
        submit_to_leader(lab, leader)?;
    }
    Ok(())
}

/// The leader must take a command.
pub(super) fn submit_to_leader(lab: &mut Lab, leader: NodeId) -> Done<Place> {
    match lab.submit(leader)? {
        Some(place) => Ok(place),
        None => Err(lab.failure(format!("the leader {leader} refused a command"))),
    }
}
