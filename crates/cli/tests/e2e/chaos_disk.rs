//! Disks fail, fill up and lie under load, and nothing that was acknowledged is lost.

use std::time::{Duration, Instant};

use crate::{
    chaos::{CLIENTS, GAP_MAX, pause},
    failing_disk::FailingDisk,
    load::Load,
    servers::{Servers, alone, end_of, run, until},
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

/// A follower without space stops taking entries; the others go on, and it follows again when
/// there is space.
#[test]
fn a_follower_whose_disk_is_full_waits_for_space() {
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
        let victim = (servers.leader().await + 1) % 3;
        disks[victim].fill();
        until("a server that is full", async || servers.log(victim).contains(FULL).then_some(()))
            .await;
        let gap = load.resumed_after(Instant::now()).await;
        assert!(gap < GAP_MAX, "no write for {gap:?} with one full disk");
        disks[victim].mend();
        servers.until_ready(victim).await;
        load.finish().await;
    });
}

/// What a server says when its disk is full.
const FULL: &str = "no space for the log";
