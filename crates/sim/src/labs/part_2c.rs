//! Part 2C: persistence, and everything at once.

use std::time::Duration;

use kontiki_raft::NodeId;

use super::lab::{Done, ELECTION_TIMEOUT, Lab};

/// All restart, the leader restarts, a leader is away while others agree, a follower restarts.
pub(super) fn persist1(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let nodes = lab.nodes();
    lab.one(nodes, true)?;
    for id in lab.world.node_ids() {
        lab.start(id)?;
    }
    lab.one(nodes, true)?;

    let leader = lab.check_one_leader()?;
    lab.start(leader)?;
    lab.one(nodes, true)?;

    let leader = lab.check_one_leader()?;
    lab.cut(leader);
    lab.one(nodes - 1, true)?;
    lab.start(leader)?;
    lab.wait(4, nodes, None)?;

    let leader = lab.check_one_leader()?;
    let follower = lab.after(leader, 1);
    lab.cut(follower);
    lab.one(nodes - 1, true)?;
    lab.start(follower)?;
    lab.one(nodes, true)?;
    Ok(())
}

/// Majorities change again and again, and share one server that was restarted.
pub(super) fn persist2(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let nodes = lab.nodes();
    for _ in 0..5 {
        lab.one(nodes, true)?;
        let leader = lab.check_one_leader()?;
        let ring: Vec<NodeId> = (0..nodes).map(|step| lab.after(leader, step)).collect();
        lab.cut(ring[1]);
        lab.cut(ring[2]);
        lab.one(nodes - 2, true)?;

        for at in [0, 3, 4] {
            lab.cut(ring[at]);
        }
        lab.start(ring[1])?;
        lab.start(ring[2])?;
        lab.sleep(ELECTION_TIMEOUT)?;
        lab.start(ring[3])?;
        lab.one(nodes - 2, true)?;

        lab.heal(ring[4]);
        lab.heal(ring[0]);
    }
    lab.one(nodes, true)?;
    Ok(())
}

/// A leader and a follower crash; the leader comes back to one that knows less.
pub(super) fn persist3(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.one(3, true)?;
    let leader = lab.check_one_leader()?;
    let (other, away) = (lab.after(leader, 1), lab.after(leader, 2));
    lab.cut(away);
    lab.one(2, true)?;

    lab.crash(leader);
    lab.crash(other);
    lab.heal(away);
    lab.start(leader)?;
    lab.one(2, true)?;

    lab.start(other)?;
    lab.one(3, true)?;
    Ok(())
}

/// A pause of the Figure 8 tests: mostly short, now and then long enough for an election.
fn pause(lab: &mut Lab) -> Done {
    let longest = if lab.draws.percent(10) { 499 } else { 12 };
    let pause = lab.draws.millis(0..=longest);
    lab.sleep(pause)
}

/// Leaders crash in the middle of things, a thousand times, as in Figure 8 of the paper.
pub(super) fn figure_8(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.one(1, true)?;
    for _ in 0..1_000 {
        let mut leader = None;
        for id in lab.world.node_ids() {
            if lab.submit(id)?.is_some() {
                leader = Some(id);
            }
        }
        pause(lab)?;
        if let Some(leader) = leader {
            lab.crash(leader);
        }
        let up = lab.world.node_ids().filter(|&id| lab.world.is_up(id)).count();
        let any = lab.any_node();
        if up < 3 && !lab.world.is_up(any) {
            lab.start(any)?;
        }
    }
    lab.start_and_heal_all()?;
    lab.one(lab.nodes(), true)?;
    Ok(())
}

/// Many agreements at once over a bad network.
pub(super) fn unreliable_agree(lab: &mut Lab) -> Done {
    lab.set_unreliable(true);
    lab.world.start_all()?;
    let mut open = Vec::new();
    for _ in 1..50 {
        for _ in 0..4 {
            open.push(lab.begin_one(1, true, 0));
        }
        // The fifth is waited for; the other four go on beside it.
        let mut fifth = lab.begin_one(1, true, 0);
        while lab.look_at(&mut fifth)?.is_none() {
            let mut still_open = Vec::new();
            for mut one in open {
                if lab.look_at(&mut one)?.is_none() {
                    still_open.push(one);
                }
            }
            open = still_open;
            lab.sleep(Duration::from_millis(10))?;
        }
    }
    lab.set_unreliable(false);
    lab.all(open)?;
    lab.one(lab.nodes(), true)?;
    Ok(())
}

/// Figure 8 over a bad network, with leaders that are cut off.
pub(super) fn figure_8_unreliable(lab: &mut Lab) -> Done {
    figure_8_cut(lab, None)
}

/// The same, and two thirds of all replies are late by 0.2 to 2.2 s from round 200 on.
pub(super) fn figure_8_long_reordering(lab: &mut Lab) -> Done {
    figure_8_cut(lab, Some(200))
}

fn figure_8_cut(lab: &mut Lab, reorders_from: Option<u64>) -> Done {
    lab.set_unreliable(true);
    lab.world.start_all()?;
    lab.one(1, true)?;
    for round in 0..1_000 {
        if reorders_from == Some(round) {
            lab.set_long_reordering();
        }
        let mut leader = None;
        for id in lab.world.node_ids() {
            if lab.submit(id)?.is_some() && lab.is_connected(id) {
                leader = Some(id);
            }
        }
        pause(lab)?;
        if let Some(leader) = leader
            && lab.draws.percent(50)
        {
            lab.cut(leader);
        }
        let connected = lab.world.node_ids().filter(|&id| lab.is_connected(id)).count();
        let any = lab.any_node();
        if connected < 3 {
            lab.heal(any);
        }
    }
    lab.heal_all();
    lab.one(lab.nodes(), true)?;
    Ok(())
}

/// Servers come and go while clients submit, over a good network.
pub(super) fn reliable_churn(lab: &mut Lab) -> Done {
    churn(lab)
}

/// Servers come and go while clients submit, over a bad network.
pub(super) fn unreliable_churn(lab: &mut Lab) -> Done {
    lab.set_unreliable(true);
    churn(lab)
}

/// A client of the churn tests.
struct Client {
    number: u64,
    /// What it has seen committed.
    values: Vec<u64>,
    /// What it waits for: command number, value, and how often it has looked.
    waits: Option<(u64, u64, usize)>,
    wake: Duration,
}

impl Client {
    fn act(&mut self, lab: &mut Lab) -> Done {
        const PAUSES: [u64; 5] = [10, 20, 50, 100, 200];
        let now = lab.world.now();
        if now < self.wake {
            return Ok(());
        }
        if let Some((number, value, looks)) = self.waits {
            let (holders, found) = lab.committed(number);
            if 0 < holders {
                if found == Some(value) {
                    self.values.push(value);
                }
                self.waits = None;
            } else if let Some(&pause) = PAUSES.get(looks) {
                self.waits = Some((number, value, looks + 1));
                self.wake = now + Duration::from_millis(pause);
            } else {
                self.waits = None;
            }
            return Ok(());
        }
        let value = lab.new_value();
        for id in lab.world.node_ids() {
            if let Some(place) = lab.submit_value(id, value, 0)? {
                self.waits = Some((place.number, value, 0));
            }
        }
        if self.waits.is_none() {
            self.wake = now + Duration::from_millis(79 + self.number * 17);
        }
        Ok(())
    }
}

fn churn(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let mut clients: Vec<Client> = (0..3)
        .map(|number| Client { number, values: Vec::new(), waits: None, wake: Duration::ZERO })
        .collect();
    for _ in 0..20 {
        let (cut, started, crashed) = (lab.any_node(), lab.any_node(), lab.any_node());
        if lab.draws.percent(20) {
            lab.cut(cut);
        }
        if lab.draws.percent(50) {
            lab.world.start(started)?;
            lab.heal(started);
        }
        if lab.draws.percent(20) {
            lab.crash(crashed);
        }
        run_clients(lab, &mut clients, ELECTION_TIMEOUT * 7 / 10)?;
    }
    run_clients(lab, &mut clients, ELECTION_TIMEOUT)?;
    lab.set_unreliable(false);
    lab.start_and_heal_all()?;
    lab.sleep(ELECTION_TIMEOUT)?;

    let last = lab.one(lab.nodes(), true)?;
    let mut found = Vec::new();
    for number in 1..=last {
        found.extend(lab.wait(number, lab.nodes(), None)?);
    }
    for value in clients.iter().flat_map(|client| &client.values) {
        if !found.contains(value) {
            return Err(lab.failure(format!("command {value} was committed and is gone")));
        }
    }
    Ok(())
}

fn run_clients(lab: &mut Lab, clients: &mut [Client], time: Duration) -> Done {
    let end = lab.world.now() + time;
    while lab.world.now() < end {
        for client in &mut *clients {
            client.act(lab)?;
        }
        lab.sleep(Duration::from_millis(5))?;
    }
    Ok(())
}
