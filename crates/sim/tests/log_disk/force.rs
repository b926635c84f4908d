//! A cluster of one out of what one server of a lost quorum has.

use std::{path::Path, sync::Arc};

use kontiki_disk::Disk;
use kontiki_log::{
    ForceReport, ForceRequest, Identity, IdentityRequest, KnownPeers, Log, LogError, Opened,
    force_single_member,
};
use kontiki_raft::{EntryId, Index, NodeId, StoreId, Term};
use kontiki_sim::disk::{Fault, SimDisk};

use crate::{
    model::{DIR, options, request},
    writes::{batch, command, committed},
};

const NEW: u64 = 0xC2;

/// Six entries, four of them known to be committed, and a peer that was seen.
fn left_over() -> SimDisk {
    let disk = SimDisk::with_seed(2);
    let (mut log, _) = open(&disk, 0xC1).expect("nothing fails");
    log.write(vec![committed(3, 4, (1..=6).map(|index| command(index, 3, 100)))])
        .expect("nothing fails");
    log.sync().expect("nothing fails");
    let mut peers =
        KnownPeers::open(Arc::new(disk.clone()), Path::new(DIR)).expect("nothing fails");
    peers.check_or_remember(NodeId(2), StoreId(22)).expect("nothing fails");
    drop(log);
    disk.kill();
    disk
}

fn open(disk: &SimDisk, cluster: u64) -> Result<(Log, Opened), LogError> {
    let request = IdentityRequest { cluster, ..request() };
    Log::open(Arc::new(disk.clone()), Path::new(DIR), &request, options())
}

fn force(disk: &SimDisk, accept_loss: bool) -> Result<ForceReport, LogError> {
    force_after(disk, accept_loss, None)
}

fn force_after(
    disk: &SimDisk,
    accept_loss: bool,
    applied: Option<EntryId>,
) -> Result<ForceReport, LogError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let log = options();
    let request = ForceRequest { cluster: NEW, address: None, accept_loss, applied, log };
    force_single_member(&disk, Path::new(DIR), &request)
}

fn is_alone(opened: &Opened) -> bool {
    let (at, membership) = opened.recovered.memberships.last().expect("there is always one");
    let is_alone = membership.voters().eq([NodeId(1)]) && !membership.is_joint();
    assert!(!is_alone || *at == opened.recovered.last);
    is_alone
}

#[test]
fn a_server_becomes_a_cluster_of_its_own() {
    let disk = left_over();
    let report = force(&disk, false).unwrap();
    assert_eq!((report.last, report.commit), (EntryId::new(6, 3), Index(4)));
    assert_eq!((report.declared_committed, report.damaged.clone()), (2, None));
    assert_eq!(
        (report.left_behind.clone(), report.membership),
        (vec![NodeId(2)], EntryId::new(7, 4))
    );
    let text = report.to_string();
    assert!(text.contains("2 entries count as committed now that may never have been"), "{text}");
    assert!(text.contains("acknowledged beyond 6@3 is lost"), "{text}");

    disk.crash(1);
    assert!(matches!(open(&disk, 0xC1), Err(LogError::WrongIdentity { .. })));
    let (log, opened) = open(&disk, NEW).unwrap();
    assert!(is_alone(&opened));
    let state = opened.recovered.hard_state;
    assert_eq!((state.term, state.voted_for), (Term(4), Some(NodeId(1))));
    assert_eq!(state.commit, Index(7));
    assert_eq!(opened.recovered.memberships.last().unwrap().1.next_id, NodeId(3));
    assert_eq!(opened.identity.store, StoreId(0x5701));
    let peers = KnownPeers::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    assert_eq!(peers.store(NodeId(2)), None, "n2 may come back with an empty directory");
    assert!(matches!(force(&disk, false), Err(LogError::Locked { .. })), "it is running");
    drop(log);
    assert!(matches!(force(&SimDisk::new(), false), Err(LogError::NoIdentity { .. })));
}

/// What a state machine on disk has is worth more than the end of a log.
#[test]
fn the_log_begins_after_what_is_applied_if_it_ends_before() {
    let disk = left_over();
    let within = EntryId::new(5, 3);
    let report = force_after(&disk, false, Some(within)).unwrap();
    assert_eq!((report.begins_after, report.membership), (None, EntryId::new(7, 4)));

    let disk = left_over();
    let beyond = EntryId::new(20, 8);
    let report = force_after(&disk, false, Some(beyond)).unwrap();
    assert_eq!((report.last, report.begins_after), (EntryId::new(6, 3), Some(beyond)));
    assert_eq!(report.membership, EntryId::new(21, 9));
    assert!(report.to_string().contains("up to 20@8 is whole"), "{report}");
    disk.crash(1);
    let (_, opened) = open(&disk, NEW).unwrap();
    assert!(is_alone(&opened));
    assert_eq!(opened.recovered.log_start, beyond);
    assert_eq!(opened.recovered.last, report.membership);
}

/// Never a sole ruler under the name of the old cluster; and it can be done again.
#[test]
fn it_may_be_interrupted_after_every_operation_of_the_disk() {
    let disk = left_over();
    let first = disk.ops();
    force(&disk, false).unwrap();
    let ops = first..disk.ops();
    let check = |disk: &SimDisk, what: &str| {
        let cluster = Identity::of_dir(disk, Path::new(DIR)).unwrap().unwrap().cluster;
        let (log, opened) = open(disk, cluster).unwrap();
        assert!(cluster == NEW || !is_alone(&opened), "{what}");
        assert!(EntryId::new(6, 3).index <= opened.recovered.last.index, "{what}");
        drop(log);
        let report = force(disk, false).unwrap();
        assert_eq!(report.new_cluster, NEW, "{what}");
        disk.crash(9);
        let (_, opened) = open(disk, NEW).unwrap();
        assert!(is_alone(&opened), "{what}");
    };
    for op in ops {
        for seed in 0..6 {
            let disk = left_over();
            disk.halt_after(op);
            assert!(force(&disk, false).is_err());
            disk.crash(seed);
            check(&disk, &format!("crash {seed} after operation {op}"));
        }
        for fault in [Fault::Io, Fault::NoSpace] {
            let disk = left_over();
            disk.fail_at(op + 1, fault);
            drop(force(&disk, false));
            disk.kill();
            check(&disk, &format!("{fault:?} at operation {}", op + 1));
        }
    }
}

/// A log with holes is not declared to be the truth by accident.
#[test]
fn a_damaged_log_is_refused_unless_the_loss_is_accepted() {
    let disk = left_over();
    let segment = Path::new(DIR).join("wal/0000000000000001.wal");
    let (mut log, _) = open(&disk, 0xC1).unwrap();
    log.write(vec![batch([command(7, 3, 100)])]).unwrap();
    log.sync().unwrap();
    drop(log);
    let used = disk.content(&segment).iter().rposition(|&byte| byte != 0).unwrap() as u64;
    disk.flip_bit(&segment, (used - 90) * 8);
    assert!(matches!(force(&disk, false), Err(LogError::Damaged { .. })));
    assert_eq!(Identity::of_dir(&disk, Path::new(DIR)).unwrap().unwrap().cluster, 0xC1);

    let report = force(&disk, true).unwrap();
    assert_eq!(report.damaged, Some(Index(7)..=Index(7)));
    assert_eq!(report.membership, EntryId::new(7, 4));
    assert!(report.to_string().contains("Entries 7 to 7 were damaged"), "{report}");
    disk.crash(0);
    let (_, opened) = open(&disk, NEW).unwrap();
    assert_eq!(opened.recovered.damaged, None, "there is nobody to be refilled by");
    assert!(is_alone(&opened));
}
