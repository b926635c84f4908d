//! Reads that must not be served: by a leader that does not know yet that it is none.

use std::time::Duration;

use kontiki_raft::{NodeId, Role};
use kontiki_sim::{Failure, NetworkSettings, Outcome, Setup, World, number};

fn leader(world: &World) -> Option<NodeId> {
    let leads = |id: &NodeId| {
        !world.is_paused(*id) && world.status(*id).is_some_and(|s| s.role == Role::Leader)
    };
    world.node_ids().filter(leads).max_by_key(|&id| world.status(id).map(|status| status.term))
}

fn outcome(world: &World, number: u64) -> Option<Outcome> {
    world.request(number)?.outcome.as_ref().map(|(_, outcome)| outcome.clone())
}

/// A started cluster of three, its leader, and one written value.
fn cluster(seed: u64) -> Result<(World, NodeId), Failure> {
    let mut world = World::new(Setup::new(seed, 3));
    world.start_all()?;
    world.run_until(Duration::from_secs(10), |world| leader(world).is_some())?;
    let leader = leader(&world).expect("a leader within ten seconds");
    write(&mut world, leader, 1)?;
    Ok((world, leader))
}

fn write(world: &mut World, id: NodeId, value: u64) -> Result<(), Failure> {
    let number = world.write(id, Some(0), value, 0)?;
    let is_done = |world: &World| outcome(world, number).is_some();
    world.run_until(Duration::from_secs(5), is_done)?;
    assert!(matches!(outcome(world, number), Some(Outcome::Applied(_))));
    Ok(())
}

fn cut_off(world: &mut World, id: NodeId) {
    for other in world.node_ids() {
        world.cut(id, other);
        world.cut(other, id);
    }
}

/// Waits for a leader beside `former`, and lets it write.
fn write_elsewhere(world: &mut World, former: NodeId) -> Result<(), Failure> {
    let is_other = |world: &World| {
        world.node_ids().any(|id| {
            id != former && world.status(id).is_some_and(|status| status.role == Role::Leader)
        })
    };
    assert!(world.run_until(Duration::from_secs(10), is_other)?);
    let other = world
        .node_ids()
        .find(|&id| id != former && world.status(id).is_some_and(|s| s.role == Role::Leader))
        .expect("as was waited for");
    write(world, other, 2)
}

/// Pitfall R12. The leader stands still for five seconds; the others elect another and write.
/// When the first one goes on it finds a read in its inbox, and believes that it still leads:
/// only a round of heartbeats can tell.
#[test]
fn a_leader_that_was_paused_serves_no_stale_read() {
    for seed in 1..=40 {
        let (mut world, former) = cluster(seed).unwrap();
        world.pause(former);
        write_elsewhere(&mut world, former).unwrap();
        cut_off(&mut world, former);
        let read = world.read(former, 0).unwrap();
        world.run_for(Duration::from_secs(3)).unwrap();
        // The world itself would object to a stale answer.
        world.resume(former).unwrap();
        world.run_for(Duration::from_secs(6)).unwrap();
        let outcome = outcome(&world, read);
        assert!(matches!(outcome, Some(Outcome::Rejected(_))), "seed {seed}: {outcome:?}");
    }
}

/// Pitfall R8. The leader hands its leadership over, and is cut off before it hears that this
/// has worked. No election timeout has passed, so no lease would have ended either.
#[test]
fn a_leader_that_has_handed_over_serves_no_stale_read() {
    let mut handed_over = 0;
    for seed in 1..=40 {
        let (mut world, former) = cluster(seed).unwrap();
        world.run_for(Duration::from_millis(500)).unwrap();
        world.set_network(NetworkSettings { keeps_in_flight: true, ..NetworkSettings::reliable() });
        world.transfer_leadership(former, None).unwrap();
        cut_off(&mut world, former);
        let is_other = |world: &World| {
            world
                .node_ids()
                .any(|id| id != former && world.status(id).is_some_and(|s| s.role == Role::Leader))
        };
        if !world.run_until(Duration::from_millis(300), is_other).unwrap() {
            continue;
        }
        handed_over += 1;
        write_elsewhere(&mut world, former).unwrap();
        let read = world.read(former, 0).unwrap();
        world.run_for(Duration::from_secs(6)).unwrap();
        let outcome = outcome(&world, read);
        assert!(matches!(outcome, Some(Outcome::Rejected(_))), "seed {seed}: {outcome:?}");
    }
    assert!(20 < handed_over, "the hand-over is what this is about: {handed_over} of 40");
}

/// Every node serves reads, and each sees what was written before.
#[test]
fn a_read_sees_the_newest_write_on_every_node() {
    for seed in 1..=20 {
        let (mut world, leader) = cluster(seed).unwrap();
        for value in 2..=5 {
            write(&mut world, leader, value).unwrap();
            for id in world.node_ids() {
                let read = world.read(id, 0).unwrap();
                world.run_for(Duration::from_millis(200)).unwrap();
                assert_eq!(outcome(&world, read), Some(Outcome::Read(Some(number(value)))));
            }
        }
        world.check_linearizable().unwrap();
    }
}
