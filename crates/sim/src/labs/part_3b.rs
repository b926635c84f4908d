//! Part 3B: the service of part 3A with snapshots, so that the log stays small.

use kontiki_raft::NodeId;

use super::{
    clerk::{self, Clerk},
    lab::{Done, ELECTION_TIMEOUT, Lab},
    part_3a::{self, Generic, everything},
};

/// What a snapshot of one small value may take.
const SNAPSHOT_BYTES_MAX: u64 = 500;

const fn key(letter: u8) -> u64 {
    1_000 + letter as u64
}

/// A server that was away needs a snapshot, and has all that is in it.
pub(super) fn snapshot_rpc(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let all: Vec<NodeId> = lab.world.node_ids().collect();
    let mut any = Clerk::new(lab, 1, all.clone());
    clerk::put(lab, &mut any, key(b'a'), "A")?;
    clerk::check(lab, &mut any, key(b'a'), "A")?;

    lab.part(&all[..2], &all[2..]);
    let mut first = Clerk::new(lab, 2, all[..2].to_vec());
    for number in 0..50 {
        clerk::put(lab, &mut first, number, &number.to_string())?;
    }
    lab.sleep(ELECTION_TIMEOUT)?;
    clerk::put(lab, &mut first, key(b'b'), "B")?;
    lab.check_sizes()?;

    // One that knows all of it and one that knows nothing: a snapshot has to go over.
    let second = [all[0], all[2]];
    lab.part(&second, &all[1..2]);
    let mut other = Clerk::new(lab, 3, second.to_vec());
    clerk::put(lab, &mut other, key(b'c'), "C")?;
    clerk::put(lab, &mut other, key(b'd'), "D")?;
    for (key, value) in [(key(b'a'), "A"), (key(b'b'), "B"), (1, "1"), (49, "49")] {
        clerk::check(lab, &mut other, key, value)?;
    }
    lab.heal_all();
    clerk::put(lab, &mut any, key(b'e'), "E")?;
    for (key, value) in [(key(b'c'), "C"), (key(b'e'), "E"), (1, "1")] {
        clerk::check(lab, &mut any, key, value)?;
    }
    if lab.world.snapshots.installed == 0 {
        return Err(lab.failure("nobody was given a snapshot"));
    }
    Ok(())
}

/// One value that is overwritten again and again takes no room.
pub(super) fn snapshot_size(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let servers = lab.world.node_ids().collect();
    let mut clerk = Clerk::new(lab, 1, servers);
    for _ in 0..200 {
        for value in ["0", "1"] {
            clerk::put(lab, &mut clerk, 0, value)?;
            clerk::check(lab, &mut clerk, 0, value)?;
        }
    }
    lab.check_sizes()?;
    for id in lab.world.node_ids() {
        let bytes = lab.world.snapshot_bytes(id);
        if SNAPSHOT_BYTES_MAX < bytes {
            return Err(lab.failure(format!("the snapshot of {id} takes {bytes} B")));
        }
    }
    Ok(())
}

/// As in part 3A, with snapshots.
pub(super) fn speed(lab: &mut Lab) -> Done {
    part_3a::speed(lab)?;
    lab.check_sizes()
}

/// All servers restart.
pub(super) fn snapshot_recover(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 1, has_crashes: true, ..Generic::default() })
}

/// All servers restart, with twenty clients.
pub(super) fn snapshot_recover_many_clients(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 20, has_crashes: true, ..Generic::default() })
}

/// A bad network.
pub(super) fn snapshot_unreliable(lab: &mut Lab) -> Done {
    generic(lab, Generic { clients: 5, is_unreliable: true, ..Generic::default() })
}

/// A bad network and restarts.
pub(super) fn snapshot_unreliable_recover(lab: &mut Lab) -> Done {
    let how = Generic { clients: 5, is_unreliable: true, has_crashes: true, ..Generic::default() };
    generic(lab, how)
}

/// A bad network, restarts and partitions.
pub(super) fn snapshot_unreliable_recover_concurrent_partition(lab: &mut Lab) -> Done {
    generic(lab, everything(5))
}

/// The same with fifteen clients on shared keys, and the whole history is judged.
pub(super) fn snapshot_unreliable_recover_concurrent_partition_linearizable(lab: &mut Lab) -> Done {
    generic(lab, Generic { is_linearizable: true, ..everything(15) })
}

fn generic(lab: &mut Lab, how: Generic) -> Done {
    part_3a::generic(lab, how)?;
    if lab.world.snapshots.made == 0 {
        return Err(lab.failure("nobody has made a snapshot"));
    }
    Ok(())
}
