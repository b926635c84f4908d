//! Disks fail, fill up and lie under load, and nothing that was acknowledged is lost.

use std::time::{Duration, Instant};

use crate::{
    chaos::{CLIENTS, GAP_MAX, pause},
    failing_disk::FailingDisk,
    load::Load,
    servers::{Servers, alone, end_of, kontiki, run, until},
};

/// Pitfall D4: a failed fsync is final. The server says so and ends; nothing that it had not
/// made durable was promised. With its disk mended it comes back.
#[test]
fn a_server_whose_fsync_fails_ends_and_comes_back() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::unstarted();
        let mut disks = Vec::new();
        for index in 0..3 {
            let Some(disk) = FailingDisk::below(&mut servers, index) else { return };
            disks.push(disk);
        }
        servers.start_all().await;
        let load = Load::start(&servers, CLIENTS).await;
        pause(Duration::from_millis(500)).await;
        let leader = servers.leader().await;
        for victim in [leader, (leader + 1) % 3] {
            disks[victim].fail();
            let moment = Instant::now();
            let status = end_of(servers.child(victim), "a server whose disk failed").await;
            assert_eq!(status.code(), Some(1), "{}", servers.log(victim));
            let log = servers.log(victim);
            let last = log.lines().last().unwrap();
            assert!(last.contains("Input/output error"), "{last}");
            let gap = load.resumed_after(moment).await;
            eprintln!("writes again {gap:?} after the first failed fsync");
            assert!(gap < GAP_MAX, "no write for {gap:?} after a disk failed");
            disks[victim].mend();
            servers.start(victim);
            servers.until_ready(victim).await;
        }
        load.finish().await;
    });
}

/// What a file system without space does to a follower, to the leader, and to all: nothing that
/// was acknowledged is lost, and writes come back when there is space again.
///
/// Not asserted: that somebody answers reads while all are full. A leader that hands over just
/// before the last disk is full may leave nobody who can write down a vote.
#[test]
fn full_disks_stop_writes_at_most_and_only_while_they_are_full() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::unstarted();
        let mut disks = Vec::new();
        for index in 0..3 {
            let Some(disk) = FailingDisk::below(&mut servers, index) else { return };
            disks.push(disk);
        }
        servers.start_all().await;
        // A segment is a mebibyte long, and two are kept ready: seconds until they are used up.
        let load = Load::with_values(&servers, CLIENTS, 16 << 10).await;
        let leader = servers.leader().await;
        for victim in [(leader + 1) % 3, leader] {
            disks[victim].fill();
            until("a server that is full", async || {
                servers.log(victim).contains(FULL).then_some(())
            })
            .await;
            let gap = load.resumed_after(Instant::now()).await;
            eprintln!("one disk is full: writes go on after {gap:?}");
            assert!(gap < GAP_MAX, "no write for {gap:?} with one full disk");
            let endpoint = servers.endpoint((victim + 1) % 3);
            until("an alarm that others hear of", async || {
                let output = kontiki(&["alarm", "list", "--endpoints", &endpoint]);
                String::from_utf8(output.stdout).unwrap().contains(" alarm:NOSPACE").then_some(())
            })
            .await;
            disks[victim].mend();
            servers.until_ready(victim).await;
        }

        disks.iter().for_each(FailingDisk::fill);
        load.stopped_for(Duration::from_secs(1)).await;
        disks.iter().for_each(FailingDisk::mend);
        let gap = load.resumed_after(Instant::now()).await;
        eprintln!("all disks were full: writes again {gap:?} after they were freed");
        assert!(gap < 2 * GAP_MAX, "no write for {gap:?} after there was space again");
        load.finish().await;
    });
}

/// What a server says when its disk is full.
const FULL: &str = "the disk is full";
