//! Part 3A: a key-value service whose clients try again, and whose appends happen once.

use std::time::Duration;

use kontiki_raft::{NodeId, Role};

use super::{
    clerk::{self, Call, Clerk, token},
    lab::{Done, ELECTION_TIMEOUT, Lab},
};

/// What the course's generic test is told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Generic {
    pub(super) clients: u64,
    pub(super) is_unreliable: bool,
    pub(super) has_crashes: bool,
    pub(super) has_partitions: bool,
    /// Clients share their keys, and the whole history is judged.
    pub(super) is_linearizable: bool,
}

const ITERATIONS: u64 = 3;

/// What one client of the generic test knows of its own key.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// How many tokens it has appended.
    count: u64,
    /// What its key holds, as it believes.
    value: String,
    has_put: bool,
}

/// Three times five seconds of clients at work, each with a key of its own, while servers
/// crash and networks part.
pub(super) fn generic(lab: &mut Lab, how: Generic) -> Done {
    lab.set_unreliable(how.is_unreliable);
    lab.world.start_all()?;
    let all: Vec<NodeId> = lab.world.node_ids().collect();
    let mut clerks: Vec<Clerk> =
        (1..=how.clients).map(|number| Clerk::new(lab, number, all.clone())).collect();
    let mut progress = vec![Progress::default(); clerks.len()];
    for _ in 0..ITERATIONS {
        if !how.is_linearizable {
            progress.fill(Progress::default());
        }
        let end = lab.world.now() + Duration::from_secs(5);
        let mut next_split = lab.world.now() + Duration::from_secs(1);
        while lab.world.now() < end {
            let until = if how.has_partitions { end.min(next_split) } else { end };
            work(lab, &mut clerks, &mut progress, until, how)?;
            if how.has_partitions && next_split <= lab.world.now() {
                split(lab);
                next_split += ELECTION_TIMEOUT + lab.draws.millis(0..=200);
            }
        }
        if how.has_partitions {
            // The last split still stands when the clients are told to end.
            lab.heal_all();
            clerk::finish(lab, &mut clerks, ELECTION_TIMEOUT)?;
        }
        if how.has_crashes {
            for id in lab.world.node_ids() {
                lab.crash(id);
            }
            clerk::finish(lab, &mut clerks, ELECTION_TIMEOUT)?;
            lab.start_and_heal_all()?;
        }
        if !clerk::finish(lab, &mut clerks, Duration::from_secs(20))? {
            return Err(lab.failure("clients wait for answers long after the faults have ended"));
        }
        lab.check_sizes()?;
        if !how.is_linearizable {
            check_values(lab, &mut clerks, &mut progress)?;
        }
    }
    if how.is_linearizable {
        clerk::check_linearizable(lab, &clerks)?;
    }
    Ok(())
}

/// Lets the clients work until then.
fn work(
    lab: &mut Lab,
    clerks: &mut [Clerk],
    progress: &mut [Progress],
    until: Duration,
    how: Generic,
) -> Done {
    clerk::run_until(lab, clerks, until, |lab, clerk| {
        let at = usize::try_from(clerk.number() - 1).unwrap_or_default();
        let progress = &mut progress[at];
        if how.is_linearizable {
            return Ok(Some(shared_call(clerk, how.clients, progress)));
        }
        own_call(lab, clerk, progress).map(Some)
    })
}

/// The next operation of a client on its own key, after a look at what the last one found.
fn own_call(lab: &Lab, clerk: &mut Clerk, progress: &mut Progress) -> Done<Call> {
    let key = clerk.number();
    if !progress.has_put {
        progress.has_put = true;
        return Ok(Call::Put { key, value: String::new() });
    }
    check_last_get(lab, clerk, progress)?;
    if clerk.draws().percent(50) {
        let value = token(key, progress.count);
        progress.count += 1;
        progress.value.push_str(&value);
        return Ok(Call::Append { key, value });
    }
    Ok(Call::Get { key })
}

fn check_last_get(lab: &Lab, clerk: &Clerk, progress: &Progress) -> Done {
    let Some(last) = clerk.last() else { return Ok(()) };
    let found = last.found.clone().unwrap_or_default();
    if matches!(last.call, Call::Get { .. }) && found != progress.value {
        let expected = &progress.value;
        return Err(lab.failure(format!("a client has read {found:?}, and expected {expected:?}")));
    }
    Ok(())
}

/// The next operation of a client on a key that all use.
fn shared_call(clerk: &mut Clerk, clients: u64, progress: &mut Progress) -> Call {
    let value = token(clerk.number(), progress.count);
    let draws = clerk.draws();
    let key = draws.below(clients);
    if draws.percent(50) {
        progress.count += 1;
        Call::Append { key, value }
    } else if draws.percent(10) {
        progress.count += 1;
        Call::Put { key, value }
    } else {
        Call::Get { key }
    }
}

/// Each key holds what its client has appended: all of it, once, in order.
fn check_values(lab: &mut Lab, clerks: &mut [Clerk], progress: &mut [Progress]) -> Done {
    for (clerk, progress) in clerks.iter_mut().zip(progress) {
        check_last_get(lab, clerk, progress)?;
        let value = clerk::get(lab, clerk, clerk.number())?;
        clerk::check_appends(lab, clerk.number(), &value, progress.count)?;
        if value != progress.value {
            let expected = &progress.value;
            return Err(lab.failure(format!("a key holds {value:?}, not {expected:?}")));
        }
    }
    Ok(())
}

/// Every server goes to one of two sides, at random.
fn split(lab: &mut Lab) {
    let side = lab.draws.bits();
    let is_there = |id: NodeId| (side >> id.get()) & 1 == 1;
    let (here, there): (Vec<_>, Vec<_>) = lab.world.node_ids().partition(|&id| !is_there(id));
    lab.part(&here, &there);
}

/// One client.
pub(super) fn basic(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 1, ..Generic::default() })
}

/// Five clients.
pub(super) fn concurrent(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 5, ..Generic::default() })
}

/// Five clients, a bad network.
pub(super) fn unreliable(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 5, is_unreliable: true, ..Generic::default() })
}

/// A thousand appends, one after the other, three in each interval of heartbeats.
pub(super) fn speed(lab: &mut Lab) -> Done {
    const APPENDS: u64 = 1_000;
    lab.world.start_all()?;
    let servers = lab.world.node_ids().collect();
    let mut clerk = Clerk::new(lab, 1, servers);
    // The first operation waits for an election.
    clerk::put(lab, &mut clerk, 0, "")?;
    let begun = lab.world.now();
    let mut expected = String::new();
    for number in 0..APPENDS {
        let value = token(0, number);
        clerk::append(lab, &mut clerk, 0, &value)?;
        expected.push_str(&value);
    }
    let taken = lab.world.now() - begun;
    clerk::check(lab, &mut clerk, 0, &expected)?;
    let heartbeat = lab.world.setup.config.heartbeat_interval;
    if heartbeat / 3 * 1_000 < taken {
        let each = taken.as_secs_f64();
        return Err(
            lab.failure(format!("an operation took {each:.1} ms, at most 33.3 are allowed"))
        );
    }
    Ok(())
}

/// Five clients append to one key over a bad network.
pub(super) fn unreliable_one_key(lab: &mut Lab) -> Done {
    const CLIENTS: u64 = 5;
    const APPENDS: u64 = 10;
    lab.set_unreliable(true);
    lab.world.start_all()?;
    let servers: Vec<NodeId> = lab.world.node_ids().collect();
    let mut first = Clerk::new(lab, CLIENTS + 1, servers.clone());
    clerk::put(lab, &mut first, 0, "")?;
    let mut clerks: Vec<Clerk> =
        (1..=CLIENTS).map(|number| Clerk::new(lab, number, servers.clone())).collect();
    let mut counts = vec![0; clerks.len()];
    while counts.iter().any(|&count| count < APPENDS) || clerks.iter().any(|c| !c.is_idle()) {
        let until = lab.world.now() + Duration::from_millis(100);
        clerk::run_until(lab, &mut clerks, until, |_, clerk| {
            let count = &mut counts[usize::try_from(clerk.number() - 1).unwrap_or_default()];
            if *count == APPENDS {
                return Ok(None);
            }
            let value = token(clerk.number(), *count);
            *count += 1;
            Ok(Some(Call::Append { key: 0, value }))
        })?;
    }
    let value = clerk::get(lab, &mut first, 0)?;
    for client in 1..=CLIENTS {
        clerk::check_appends(lab, client, &value, APPENDS)?;
    }
    let length: usize =
        (1..=CLIENTS).flat_map(|c| (0..APPENDS).map(move |n| token(c, n).len())).sum();
    if value.len() != length {
        return Err(lab.failure(format!("{value:?} holds more than was appended")));
    }
    Ok(())
}

/// The majority goes on without its leader, the minority answers nobody, and all is well after
/// the network has healed.
pub(super) fn one_partition(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let all: Vec<NodeId> = lab.world.node_ids().collect();
    let mut any = Clerk::new(lab, 1, all.clone());
    clerk::put(lab, &mut any, 1, "13")?;

    let leads = |id: &NodeId| lab.world.status(*id).is_some_and(|s| s.role == Role::Leader);
    let leader = all.iter().copied().find(leads).unwrap_or(NodeId(1));
    let minority = vec![leader, lab.after(leader, 1)];
    let majority: Vec<NodeId> = all.iter().copied().filter(|id| !minority.contains(id)).collect();
    lab.part(&majority, &minority);

    let mut here = Clerk::new(lab, 2, majority);
    let mut there = [Clerk::new(lab, 3, minority.clone()), Clerk::new(lab, 4, minority)];
    clerk::put(lab, &mut here, 1, "14")?;
    clerk::check(lab, &mut here, 1, "14")?;

    let [writer, reader] = &mut there;
    writer.begin(lab, Call::Put { key: 1, value: "15".to_owned() });
    reader.begin(lab, Call::Get { key: 1 });
    clerk::run_until(lab, &mut there, lab.world.now() + Duration::from_secs(1), |_, _| Ok(None))?;
    if there.iter().any(Clerk::is_idle) {
        return Err(lab.failure("an operation has ended in the minority"));
    }
    clerk::check(lab, &mut here, 1, "14")?;
    clerk::put(lab, &mut here, 1, "16")?;
    clerk::check(lab, &mut here, 1, "16")?;

    lab.heal_all();
    for clerk in &mut there {
        clerk.connect(all.clone());
    }
    if !clerk::finish(lab, &mut there, Duration::from_secs(3))? {
        return Err(lab.failure("an operation has not ended 3 s after the network was whole"));
    }
    clerk::check(lab, &mut any, 1, "15")
}

/// One client while the network parts again and again.
pub(super) fn many_partitions_one_client(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 1, has_partitions: true, ..Generic::default() })
}

/// Five clients while the network parts again and again.
pub(super) fn many_partitions_many_clients(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 5, has_partitions: true, ..Generic::default() })
}

/// One client while all servers restart.
pub(super) fn persist_one_client(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 1, has_crashes: true, ..Generic::default() })
}

/// Five clients while all servers restart.
pub(super) fn persist_concurrent(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 5, has_crashes: true, ..Generic::default() })
}

/// The same over a bad network.
pub(super) fn persist_concurrent_unreliable(lab: &mut Lab) -> Done {
    let how = Generic { clients: 5, has_crashes: true, is_unreliable: true, ..Generic::default() };
    generic(lab, how)
}

/// Restarts and partitions.
pub(super) fn persist_partition(lab: &mut Lab) -> Done {
    let how = Generic { clients: 5, has_crashes: true, has_partitions: true, ..Generic::default() };
    generic(lab, how)
}

/// Everything at once.
pub(super) fn persist_partition_unreliable(lab: &mut Lab) -> Done {
    generic(lab, everything(5))
}

/// Everything at once, fifteen clients on shared keys, and the whole history is judged.
pub(super) fn persist_partition_unreliable_linearizable(lab: &mut Lab) -> Done {
    generic(lab, Generic { is_linearizable: true, ..everything(15) })
}

pub(super) fn everything(clients: u64) -> Generic {
    Generic {
        clients,
        is_unreliable: true,
        has_crashes: true,
        has_partitions: true,
        is_linearizable: false,
    }
}
