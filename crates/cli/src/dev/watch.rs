//! What the servers of a development cluster are doing, by asking them.

use std::{process::ExitStatus, time::Duration};

use etcd_client::{Client, StatusResponse};
use tokio::{task::JoinSet, time};

use super::cluster::Cluster;
use crate::client;

/// How long a server may take to tell how it is.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);

/// One server at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) state: State,
    /// 0 if it was not started by us.
    pub(super) pid: u32,
    pub(super) term: u64,
    pub(super) applied: u64,
    /// How our process ended, even if another has taken its place.
    pub(super) ended: Option<ExitStatus>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// It runs and has not answered yet.
    #[default]
    Starting,
    Leader,
    Follower,
    /// It receives everything, and does not vote yet.
    Learner,
    /// It answers and knows no leader.
    NoLeader,
    /// It runs, has answered before, and does not answer.
    Silent,
    Dead,
}

impl State {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Learner => "learner",
            Self::NoLeader => "no leader",
            Self::Silent => "silent",
            Self::Dead => "dead",
        }
    }
}

/// Keeps a connection to each server.
pub(super) struct Watcher {
    endpoints: Vec<String>,
    clients: Vec<Option<Client>>,
    last: Vec<View>,
}

impl Watcher {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let count = cluster.servers.len();
        Self {
            endpoints: (0..count).map(|index| cluster.endpoint(index)).collect(),
            clients: (0..count).map(|_| None).collect(),
            last: vec![View::default(); count],
        }
    }

    /// The servers are others from now on, or the same.
    pub(super) fn follow(&mut self, cluster: &Cluster) {
        let before = std::mem::replace(self, Self::new(cluster));
        let known = before.endpoints.iter().zip(before.clients).zip(before.last);
        for ((endpoint, client), last) in known {
            let Some(at) = self.endpoints.iter().position(|other| other == endpoint) else {
                continue;
            };
            if let (Some(place), Some(view)) = (self.clients.get_mut(at), self.last.get_mut(at)) {
                (*place, *view) = (client, last);
            }
        }
    }

    /// Looks at all servers at once.
    pub(super) async fn look(&mut self, cluster: &mut Cluster) -> Vec<View> {
        let mut asked = JoinSet::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let (endpoint, client) = (endpoint.clone(), self.clients.get(index).cloned().flatten());
            asked.spawn(async move { (index, ask(&endpoint, client).await) });
        }
        let mut answers = vec![None; self.endpoints.len()];
        while let Some(answer) = asked.join_next().await {
            let Ok((index, answer)) = answer else { continue };
            let (client, status) = answer.unzip();
            if let Some(slot) = self.clients.get_mut(index) {
                *slot = client;
            }
            if let Some(slot) = answers.get_mut(index) {
                *slot = status;
            }
        }
        let views = cluster.servers.iter_mut().zip(&self.last).zip(answers);
        self.last = views
            .map(|((server, last), answer)| {
                let (pid, ended) = server.process();
                view(last, answer, pid, ended)
            })
            .collect();
        self.last.clone()
    }
}

/// Asks a server how it is. Nothing if it does not say so in time.
pub(super) async fn ask(
    endpoint: &str,
    client: Option<Client>,
) -> Option<(Client, StatusResponse)> {
    let question = async {
        let mut client = match client {
            Some(client) => client,
            None => client::connect(endpoint, ANSWER_TIMEOUT).await.ok()?,
        };
        let status = client.status().await.ok()?;
        Some((client, status))
    };
    time::timeout(ANSWER_TIMEOUT, question).await.ok().flatten()
}

fn view(last: &View, answer: Option<StatusResponse>, pid: u32, ended: Option<ExitStatus>) -> View {
    // A server that was started by hand has a process that is not ours.
    let pid = if ended.is_some() && answer.is_some() { 0 } else { pid };
    match answer {
        Some(status) => {
            let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
            let state = match status.leader() {
                0 => State::NoLeader,
                leader if leader == id => State::Leader,
                _ if status.is_learner() => State::Learner,
                _ => State::Follower,
            };
            let (term, applied) = (status.raft_term(), status.raft_applied_index());
            View { state, pid, term, applied, ended }
        }
        None => {
            let state = match last.state {
                _ if ended.is_some() => State::Dead,
                State::Starting => State::Starting,
                _ => State::Silent,
            };
            View { state, pid, ended, ..last.clone() }
        }
    }
}
