//! Servers are killed and paused under load, and nothing that was acknowledged is lost.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{
    load::Load,
    servers::{Servers, alone, run},
};

/// Within this, writes must be possible again after the death of a leader.
pub(crate) const GAP_MAX: Duration = Duration::from_secs(2);

pub(crate) const CLIENTS: usize = 16;

pub(crate) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

#[test]
fn acknowledged_writes_survive_kill_9_of_every_leader_and_of_all_at_once() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        let load = Load::start(&servers, CLIENTS).await;
        for round in 1..=5 {
            pause(Duration::from_millis(700)).await;
            let leader = servers.leader().await;
            servers.kill(leader);
            let gap = load.resumed_after(Instant::now()).await;
            eprintln!("round {round}: writes again after {gap:?}");
            assert!(gap < GAP_MAX, "round {round}: no write for {gap:?} after the leader's death");
            pause(Duration::from_millis(300)).await;
            servers.start(leader);
            servers.until_ready(leader).await;
        }

        for index in 0..3 {
            servers.kill(index);
        }
        for index in 0..3 {
            servers.start(index);
        }
        load.resumed_after(Instant::now()).await;
        pause(Duration::from_millis(500)).await;
        let writes = load.finish().await;
        eprintln!("{writes} acknowledged writes are there");
        assert!(100 < writes, "only {writes} writes: this was no load");
    });
}

#[test]
fn a_paused_leader_comes_back_without_stale_reads_or_lost_writes() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        let load = Load::start(&servers, CLIENTS).await;
        pause(Duration::from_millis(700)).await;
        let leader = servers.leader().await;
        servers.signal(leader, Signal::STOP);
        let gap = load.resumed_after(Instant::now()).await;
        assert!(gap < GAP_MAX, "no write for {gap:?} after the leader was paused");
        pause(Duration::from_secs(5).saturating_sub(gap)).await;
        servers.signal(leader, Signal::CONT);
        servers.until_ready(leader).await;
        pause(Duration::from_secs(1)).await;
        load.finish().await;
    });
}
