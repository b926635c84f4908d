//! Members are added and removed, as an etcd client does it.

use std::time::Duration;

use etcd_client::{Client, Member};

use crate::servers::{Servers, until};

/// Longer than a change of leader, or of the membership, takes.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Servers {
    /// Puts a new server into the place of an old one, which is stopped. Returns the new one.
    pub(crate) async fn replace(&mut self, old: usize) -> usize {
        let new = self.make_joiner();
        self.add_member(new).await;
        self.remove_member(old).await;
        self.kill(old);
        new
    }

    /// Adds a server that nobody knows, starts it, and waits until it is a voter.
    pub(crate) async fn add_member(&mut self, new: usize) {
        let url = self.peer_url(new);
        self.change("the member is added", async |client: &mut Client| {
            // An answer that was lost may have been a yes.
            let is_there = members(client).await?.iter().any(|member| has_url(member, &url));
            if is_there || client.member_add([url.clone()], None).await.is_ok() {
                Some(())
            } else {
                None
            }
        })
        .await;
        self.start(new);
        self.change("the member is a voter", async |client: &mut Client| {
            let members = members(client).await?;
            let member = members.iter().find(|member| has_url(member, &url))?;
            (!member.is_learner()).then_some(())
        })
        .await;
    }

    /// Removes a server, which may run or not.
    pub(crate) async fn remove_member(&mut self, old: usize) {
        let url = self.peer_url(old);
        self.change("the member is removed", async |client: &mut Client| {
            let members = members(client).await?;
            let Some(member) = members.iter().find(|member| has_url(member, &url)) else {
                return Some(());
            };
            client.member_remove(member.id()).await.ok()?;
            None
        })
        .await;
        self.forget(old);
    }

    /// Tries something at one server after the other.
    async fn change(&self, what: &str, mut attempt: impl AsyncFnMut(&mut Client) -> Option<()>) {
        let mut clients = Vec::new();
        for index in self.running() {
            clients.push(self.client(index).await);
        }
        until(what, async || {
            clients.rotate_left(1);
            tokio::time::timeout(TIMEOUT, attempt(&mut clients[0])).await.ok()?
        })
        .await;
    }
}

async fn members(client: &mut Client) -> Option<Vec<Member>> {
    Some(client.member_list().await.ok()?.members().to_vec())
}

fn has_url(member: &Member, url: &str) -> bool {
    member.peer_urls().iter().any(|other| other == url)
}
