//! `kontiki dev add`, `replace`, `remove`, `kill`, `stop`, `start`: from another terminal, to a
//! cluster that `kontiki dev` runs.

use std::{
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use clap::Subcommand;
use etcd_client::{Client, MemberListResponse};
use tokio::time;

use super::{
    cluster::Seat,
    control::{Order, ask},
    watch,
};
use crate::{client, failure::Failure};

/// How long a server may take to catch up, or to stop. Long: there may be much to copy.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a server may take to serve before the one who started it is not kept any longer. A
/// guess: most take less than a second.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How long a server that was removed may take to end.
const PARTING: Duration = Duration::from_secs(5);

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Subcommand)]
pub(super) enum DevOrder {
    /// Add a server to the running cluster
    Add,
    /// Wipe a server and put a new one into its place
    Replace { name: String },
    /// Remove a server from the cluster
    Remove { name: String },
    /// End a server at once, as kill -9 does
    Kill { name: String },
    /// Stop a server in order
    Stop { name: String },
    /// Start a server that was killed or stopped
    Start { name: String },
}

/// Carries out an order on the cluster in `data_dir`.
pub(super) async fn run(order: DevOrder, data_dir: &Path) -> Result<(), Failure> {
    let mut steps = Steps { data_dir, seats: ask(data_dir, &Order::List).await? };
    match order {
        DevOrder::Add => steps.add().await,
        DevOrder::Replace { name } => steps.replace(&name).await,
        DevOrder::Remove { name } => steps.remove(&name).await,
        DevOrder::Kill { name } => {
            steps.known(&name)?;
            steps.order(Order::Kill(name.clone())).await?;
            say(&format!("{name} is dead; kontiki dev start {name} brings it back"))
        }
        DevOrder::Stop { name } => {
            steps.known(&name)?;
            steps.order(Order::Stop(name.clone())).await?;
            steps.until_stopped(&name).await?;
            say(&format!("{name} has stopped; kontiki dev start {name} brings it back"))
        }
        DevOrder::Start { name } => {
            steps.order(Order::Start(name.clone())).await?;
            steps.until_started(&name).await
        }
    }
}

struct Steps<'a> {
    data_dir: &'a Path,
    seats: Vec<Seat>,
}

impl Steps<'_> {
    async fn order(&mut self, order: Order) -> Result<(), Failure> {
        self.seats = ask(self.data_dir, &order).await?;
        Ok(())
    }

    fn known(&self, name: &str) -> Result<&Seat, Failure> {
        let seat = self.seats.iter().find(|seat| seat.name == name);
        seat.ok_or_else(|| {
            let known: Vec<&str> = self.seats.iter().map(|seat| seat.name.as_str()).collect();
            Failure::new(format!("there is no server {name}; there are {}", known.join(", ")))
        })
    }

    async fn add(&mut self) -> Result<(), Failure> {
        let planned = ask(self.data_dir, &Order::Plan).await?;
        let seat = planned.first().ok_or_else(|| Failure::new("there is no room for another"))?;
        let mut cluster = self.client(None).await?;
        let added = cluster.member_add([seat.peer_url.clone()], None).await;
        let id = added.map_err(refused)?.member().map_or(0, etcd_client::Member::id);
        say(&format!("{} is a member, as a learner; starting it", seat.name))?;
        self.order(Order::Join(seat.name.clone())).await?;
        self.until_voter(&seat.name, id).await
    }

    async fn replace(&mut self, name: &str) -> Result<(), Failure> {
        let (endpoint, url) = {
            let seat = self.known(name)?;
            (seat.endpoint.clone(), seat.peer_url.clone())
        };
        let list = self.members(Some(name)).await?;
        let old = id_at(&list, &url).ok_or_else(|| Failure::new(format!("{name} is no member")))?;
        let mut others =
            self.seats.iter().filter(|seat| seat.is_running && seat.endpoint != endpoint);
        let asked = others.next().ok_or_else(|| Failure::new("no other server runs"))?;
        let asked = asked.endpoint.clone();
        self.order(Order::Kill(name.to_owned())).await?;
        let replaced = client::replace(&asked, DIAL_TIMEOUT, old, Vec::new()).await;
        let id = replaced.map_err(|failure| {
            Failure::new(format!(
                "{failure}; {name} is stopped, and its data is as it was: kontiki dev start {name}"
            ))
        })?;
        say(&format!("{name} is dead and wiped; a new one takes its place once it has caught up"))?;
        self.order(Order::Join(name.to_owned())).await?;
        self.until_voter(name, id).await
    }

    async fn remove(&mut self, name: &str) -> Result<(), Failure> {
        let url = self.known(name)?.peer_url.clone();
        let list = self.members(Some(name)).await?;
        if let Some(id) = id_at(&list, &url) {
            let mut client = self.client(Some(name)).await?;
            client.member_remove(id).await.map_err(refused)?;
            // It hands over what it leads, and ends by itself. One that does not is killed.
            drop(time::timeout(PARTING, self.until_stopped(name)).await);
        }
        self.order(Order::Forget(name.to_owned())).await?;
        say(&format!("{name} is removed; its data stays in {}/{name}", self.data_dir.display()))
    }

    /// A client of a server that answers, other than `except`.
    async fn client(&self, except: Option<&str>) -> Result<Client, Failure> {
        let mut last = Failure::new("no other server runs");
        for seat in self.seats.iter().filter(|seat| Some(seat.name.as_str()) != except) {
            match client::connect(&seat.endpoint, DIAL_TIMEOUT).await {
                Ok(client) => return Ok(client),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn members(&self, except: Option<&str>) -> Result<MemberListResponse, Failure> {
        self.client(except).await?.member_list().await.map_err(refused)
    }

    async fn until_voter(&mut self, name: &str, id: u64) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.check_running(name).await?;
            if let Ok(list) = self.members(Some(name)).await
                && list.members().iter().any(|member| member.id() == id && !member.is_learner())
            {
                return say(&format!("{name} has caught up, and votes"));
            }
            time::sleep(LOOK_INTERVAL).await;
        }
        Err(Failure::new(format!(
            "{name} has not caught up within {PATIENCE:?}: it stays a learner until it has; see \
             {}/{name}.log",
            self.data_dir.display()
        )))
    }

    /// Waits until a server that was started serves, or has ended.
    async fn until_started(&mut self, name: &str) -> Result<(), Failure> {
        let endpoint = self.known(name)?.endpoint.clone();
        let deadline = Instant::now() + START_PATIENCE;
        while Instant::now() < deadline {
            self.check_running(name).await?;
            if watch::ask(&endpoint, None).await.is_some() {
                return say(&format!("{name} serves"));
            }
            time::sleep(LOOK_INTERVAL).await;
        }
        let log = self.data_dir.join(format!("{name}.log"));
        say(&format!("{name} runs and does not serve yet; see {}", log.display()))
    }

    /// Fails with the last words of a server that has ended.
    async fn check_running(&mut self, name: &str) -> Result<(), Failure> {
        self.order(Order::List).await?;
        let seat = self.known(name)?;
        match &seat.ended {
            Some(ended) => Err(Failure::new(format!(
                "{ended}; all that it has logged is in {}/{name}.log",
                self.data_dir.display()
            ))),
            None => Ok(()),
        }
    }

    async fn until_stopped(&mut self, name: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while self.known(name)?.is_running {
            if deadline < Instant::now() {
                return Err(Failure::new(format!("{name} has not stopped within {PATIENCE:?}")));
            }
            time::sleep(LOOK_INTERVAL).await;
            self.order(Order::List).await?;
        }
        Ok(())
    }
}

fn id_at(list: &MemberListResponse, url: &str) -> Option<u64> {
    let has_url = |member: &&etcd_client::Member| member.peer_urls().iter().any(|at| at == url);
    // Of two at one place the first is the one that goes.
    list.members().iter().find(has_url).map(etcd_client::Member::id)
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn refused(error: etcd_client::Error) -> Failure {
    Failure::new(client::describe(&error))
}

fn say(text: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{text}")?)
}
