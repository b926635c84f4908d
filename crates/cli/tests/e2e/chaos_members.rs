//! Servers come and go under load, and nothing that was acknowledged is lost.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{
    chaos::{CLIENTS, GAP_MAX, pause},
    load::Load,
    servers::{Servers, alone, run},
};

/// First a follower is replaced, then the leader: each time a new server is added, catches up,
/// gets its vote, and the old one is removed. Clients notice at most a change of leader.
#[test]
fn servers_are_replaced_under_load() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        let mut load = Load::start(&servers, CLIENTS).await;
        pause(Duration::from_millis(500)).await;
        for is_leader in [false, true] {
            let leader = servers.leader().await;
            let is_wanted = |&&index: &&usize| (index == leader) == is_leader;
            let old = *servers.running().iter().find(is_wanted).unwrap();
            let began = Instant::now();
            let new = servers.replace(old).await;
            eprintln!("{} for {}: {:?}", servers.name(new), servers.name(old), began.elapsed());
            let gap = load.resumed_after(Instant::now()).await;
            assert!(gap < GAP_MAX, "no write for {gap:?} after a server was replaced");
            servers.until_ready(new).await;
        }
        load.ask(&servers);
        load.finish().await;
    });
}

/// Pitfall M7: a server that lost its disk may not vote under its old id. It is removed, and
/// added again with an id of its own; then it is as good as any.
#[test]
fn a_wiped_server_is_added_again_under_load() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        let load = Load::start(&servers, CLIENTS).await;
        pause(Duration::from_millis(500)).await;
        let victim = (servers.leader().await + 1) % 3;
        servers.kill(victim);
        fs::remove_dir_all(servers.data_dir(victim)).unwrap();
        servers.remove_member(victim).await;
        servers.become_joiner(victim);
        servers.add_member(victim).await;
        let gap = load.resumed_after(Instant::now()).await;
        assert!(gap < GAP_MAX, "no write for {gap:?} after the server came back");

        // It counts: with it and one other there is a quorum.
        let other = (victim + 1) % 3;
        servers.kill(other);
        let gap = load.resumed_after(Instant::now()).await;
        eprintln!("writes {gap:?} after the wiped server was needed");
        assert!(gap < GAP_MAX, "no write for {gap:?} with the wiped server's vote");
        servers.start(other);
        servers.until_ready(other).await;
        load.finish().await;
    });
}
