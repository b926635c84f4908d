//! Changes of the members, as etcd's clients ask for them.

mod harness;

use harness::{
    Cluster, PATIENCE,
    client::{Client, Refused},
    free_ports,
};
use kontiki_server::{
    Server,
    proto::{etcdserverpb as pb, kontikipb},
};
use tokio::time::{self, Instant};
use tonic::Code;

fn run(story: impl Future<Output = ()>) {
    harness::runtime().block_on(story);
}

fn free_url() -> String {
    format!("http://127.0.0.1:{}", free_ports(1)[0])
}

async fn add(
    client: &mut Client,
    urls: &[&str],
    is_learner: bool,
) -> Result<pb::MemberAddResponse, Refused> {
    let peer_ur_ls = urls.iter().map(|&url| url.to_owned()).collect();
    client.ask("Cluster/MemberAdd", pb::MemberAddRequest { peer_ur_ls, is_learner }).await
}

async fn remove(client: &mut Client, id: u64) -> Result<pb::MemberRemoveResponse, Refused> {
    client.ask("Cluster/MemberRemove", pb::MemberRemoveRequest { id }).await
}

async fn promote(client: &mut Client, id: u64) -> Result<pb::MemberPromoteResponse, Refused> {
    client.ask("Cluster/MemberPromote", pb::MemberPromoteRequest { id }).await
}

async fn update(
    client: &mut Client,
    id: u64,
    url: &str,
) -> Result<pb::MemberUpdateResponse, Refused> {
    let peer_ur_ls = vec![url.to_owned()];
    client.ask("Cluster/MemberUpdate", pb::MemberUpdateRequest { id, peer_ur_ls }).await
}

async fn move_leader(
    client: &mut Client,
    target_id: u64,
) -> Result<pb::MoveLeaderResponse, Refused> {
    client.ask("Maintenance/MoveLeader", pb::MoveLeaderRequest { target_id }).await
}

async fn list(client: &mut Client) -> Vec<pb::Member> {
    let request = pb::MemberListRequest { linearizable: true };
    let answer: pb::MemberListResponse =
        client.ask("Cluster/MemberList", request).await.expect("a list");
    answer.members
}

fn refused(code: Code, text: &str) -> Refused {
    (code, format!("etcdserver: {text}"))
}

/// The foot-gun of etcd: a server that nobody reaches must not cost a cluster its quorum, be
/// the cluster as small as it may.
#[test]
fn a_server_that_nobody_reaches_stays_a_learner() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let url = free_url();
        let added = add(&mut client, &[&url], false).await.unwrap();
        let member = added.member.unwrap();
        assert_eq!((member.name.as_str(), &member.peer_ur_ls), ("", &vec![url]));
        assert!(member.is_learner && member.client_ur_ls.is_empty() && member.id != 0);
        assert_eq!(added.members.len(), 2);
        assert_eq!(added.header.unwrap().revision, 0, "as in etcd");
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        client.put(put).await.expect("the cluster goes on");

        let early = promote(&mut client, member.id).await.unwrap_err();
        let why = "can only promote a learner member which is in sync with leader";
        assert_eq!(early, refused(Code::FailedPrecondition, why));
        assert_eq!(remove(&mut client, member.id).await.unwrap().members.len(), 1);
        assert_eq!(list(&mut client).await.len(), 1);
        cluster.stop_all().await;
    });
}

#[test]
fn what_makes_no_sense_is_refused_in_etcds_words() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let me = list(&mut client).await.remove(0);

        let urls_invalid = refused(Code::InvalidArgument, "given member URLs are invalid");
        for urls in [&[][..], &["badurl"], &["http://h:1/path"], &["http://h"], &["ftp://h:1"]] {
            assert_eq!(add(&mut client, urls, false).await.unwrap_err(), urls_invalid);
        }
        assert_eq!(update(&mut client, me.id, "badurl").await.unwrap_err(), urls_invalid);

        let used = refused(Code::FailedPrecondition, "Peer URLs already exists");
        assert_eq!(add(&mut client, &[&me.peer_ur_ls[0]], true).await.unwrap_err(), used);

        let nobody = refused(Code::NotFound, "member not found");
        assert_eq!(remove(&mut client, 7).await.unwrap_err(), nobody);
        assert_eq!(promote(&mut client, 7).await.unwrap_err(), nobody);
        assert_eq!(update(&mut client, 7, "http://h:1").await.unwrap_err(), nobody);

        let voter = refused(Code::FailedPrecondition, "can only promote a learner member");
        assert_eq!(promote(&mut client, me.id).await.unwrap_err(), voter);

        let last = "re-configuration failed due to not enough started members";
        assert_eq!(remove(&mut client, me.id).await.unwrap_err(), refused(Code::Unknown, last));

        let (first, second) = (free_url(), free_url());
        let learner = add(&mut client, &[&first], true).await.unwrap().member.unwrap();
        let many = refused(Code::FailedPrecondition, "too many learner members in cluster");
        assert_eq!(add(&mut client, &[&second], true).await.unwrap_err(), many);
        add(&mut client, &[&second], false).await.expect("one that will vote is not counted");
        assert_eq!(update(&mut client, learner.id, &second).await.unwrap_err(), used);

        let moved = update(&mut client, learner.id, &free_url()).await.unwrap();
        let member = moved.members.iter().find(|member| member.id == learner.id).unwrap();
        assert!(member.is_learner, "who it is does not change with where it is");
        assert_ne!(member.peer_ur_ls, learner.peer_ur_ls);

        let bad = refused(Code::FailedPrecondition, "bad leader transferee");
        assert_eq!(move_leader(&mut client, learner.id).await.unwrap_err(), bad);
        assert_eq!(move_leader(&mut client, 7).await.unwrap_err(), bad);
        assert_eq!(move_leader(&mut client, me.id).await.unwrap().header, None);
        cluster.stop_all().await;
    });
}

#[test]
fn the_leadership_is_moved_by_the_leader_alone() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let members = list(&mut cluster.client(0).await).await;
        let leader = (0..3).find(|&at| cluster.server(at).is_leader()).unwrap();
        let other = (leader + 1) % 3;
        let not_leader = refused(Code::FailedPrecondition, "not leader");
        let mut follower = cluster.client(other).await;
        let refusal = move_leader(&mut follower, members[other].id).await.unwrap_err();
        assert_eq!(refusal, not_leader);
        move_leader(&mut cluster.client(leader).await, members[other].id).await.unwrap();
        assert_eq!(follower.status().await.unwrap().leader, members[other].id);
        cluster.stop_all().await;
    });
}

/// etcd drops the second of two quick changes, and its client waits in vain.
#[test]
fn changes_that_meet_wait_for_each_other() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let urls: Vec<String> = (0..3).map(|_| free_url()).collect();
        let [a, b, c] = [0, 1, 2].map(|at: usize| [urls[at].as_str()]);
        let (mut one, mut two, mut three) =
            (cluster.client(0).await, cluster.client(1).await, cluster.client(2).await);
        let (first, second, third) = tokio::join!(
            add(&mut one, &a, false),
            add(&mut two, &b, false),
            add(&mut three, &c, false),
        );
        let ids = [first, second, third].map(|added| added.unwrap().member.unwrap().id);
        assert_eq!(list(&mut one).await.len(), 6);
        let (first, second, third) = tokio::join!(
            remove(&mut one, ids[0]),
            remove(&mut two, ids[1]),
            remove(&mut three, ids[2]),
        );
        for removed in [first, second, third] {
            removed.unwrap();
        }
        assert_eq!(list(&mut three).await.len(), 3);
        cluster.stop_all().await;
    });
}

/// The cluster of two that would be left could decide nothing.
#[test]
fn a_server_that_is_needed_is_not_removed() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let members = list(&mut cluster.client(0).await).await;
        cluster.stop(2).await;
        let mut client = cluster.client(0).await;
        let refusal = remove(&mut client, members[1].id).await.unwrap_err();
        assert_eq!(refusal, refused(Code::Unavailable, "unhealthy cluster"));
        assert_eq!(list(&mut client).await.len(), 3);
        assert_eq!(remove(&mut client, members[2].id).await.unwrap().members.len(), 2);
        cluster.stop_all().await;
    });
}

/// A server that is added takes part: it catches up, votes, and says who it is.
#[test]
fn a_server_joins_and_becomes_a_voter() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        client.put(put.clone()).await.unwrap();
        let joiner = cluster.joiner("n2");
        let early = tokio::spawn(Server::start(joiner.clone()));
        time::sleep(time::Duration::from_millis(300)).await;
        assert!(!early.is_finished(), "it waits until it is known");

        let url = joiner.initial_advertise_peer_urls[0].clone();
        let id = add(&mut client, &[&url], false).await.unwrap().member.unwrap().id;
        let server = time::timeout(PATIENCE, early).await.unwrap().unwrap().unwrap();
        assert!(time::timeout(PATIENCE, server.ready()).await.unwrap());
        let began = Instant::now();
        let voter = loop {
            let list = list(&mut client).await;
            let member = list.into_iter().find(|member| member.id == id).unwrap();
            if !member.is_learner && member.name == "n2" && !member.client_ur_ls.is_empty() {
                break member;
            }
            assert!(began.elapsed() < PATIENCE, "{member:?}");
            time::sleep(time::Duration::from_millis(20)).await;
        };
        let mut there = Client::connect(server.client_addresses()[0]).await;
        assert_eq!(list(&mut there).await, list(&mut client).await, "they agree on everyone");
        assert_eq!(there.status().await.unwrap().header.unwrap().member_id, voter.id);
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        assert_eq!(there.range(range).await.unwrap().kvs[0].value, "v");

        // It is needed from now on.
        server.shutdown().await.unwrap();
        assert_eq!(client.put(put).await.unwrap_err().code(), Code::Unavailable);
        let server = Server::start(joiner).await.unwrap();
        assert!(time::timeout(PATIENCE, server.ready()).await.unwrap());
        server.shutdown().await.unwrap();
        cluster.stop_all().await;
    });
}

/// What a learner answers, and in which words it refuses the rest.
#[test]
fn a_learner_serves_what_needs_nobody_else() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let joiner = cluster.joiner("n2");
        let url = joiner.initial_advertise_peer_urls[0].clone();
        let id = add(&mut client, &[&url], true).await.unwrap().member.unwrap().id;
        let server = Server::start(joiner).await.unwrap();
        assert!(time::timeout(PATIENCE, server.ready()).await.unwrap());
        let mut learner = Client::connect(server.client_addresses()[0]).await;
        assert!(learner.status().await.unwrap().is_learner);
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let local = pb::RangeRequest { serializable: true, ..range.clone() };
        learner.range(local).await.unwrap();
        let not_here = "etcdserver: rpc not supported for learner";
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        for status in [learner.range(range).await.unwrap_err(), learner.put(put).await.unwrap_err()]
        {
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, not_here));
        }
        let began = Instant::now();
        while let Err(refusal) = promote(&mut client, id).await {
            assert!(began.elapsed() < PATIENCE, "{refusal:?}");
        }
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        let began = Instant::now();
        while learner.put(put.clone()).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "it is a voter, and knows it soon");
        }
        server.shutdown().await.unwrap();
        cluster.stop_all().await;
    });
}

/// Who everyone is stands in the log: names and ids survive, whatever the flags say later.
#[test]
fn a_voter_is_removed_and_the_others_go_on() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let before = list(&mut cluster.client(0).await).await;
        let leader = (0..3).find(|&at| cluster.server(at).is_leader()).unwrap();
        let mut client = cluster.client((leader + 1) % 3).await;
        let left = remove(&mut client, before[leader].id).await.unwrap().members;
        let ids: Vec<u64> = left.iter().map(|member| member.id).collect();
        let others = before.iter().filter(|member| member.id != before[leader].id);
        assert_eq!(ids, others.map(|member| member.id).collect::<Vec<_>>());

        let fault = time::timeout(PATIENCE, cluster.server(leader).failed()).await.unwrap();
        assert!(fault.to_string().starts_with("this server was removed"), "{fault}");
        cluster.stop(leader).await;
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        client.put(put).await.unwrap();
        cluster.stop_all().await;
    });
}

/// A replacement that never comes costs nothing, and can be taken back.
#[test]
fn a_member_keeps_its_vote_until_its_replacement_has_caught_up() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let mut client = cluster.client(0).await;
        let members = list(&mut client).await;
        let request = kontikipb::MemberReplaceRequest::new(members[2].id, vec![free_url()]);
        let path = "/kontikipb.Cluster/MemberReplace";
        let added: pb::MemberAddResponse = client.call(path, request).await.unwrap();
        assert!(added.member.as_ref().unwrap().is_learner);
        let began = Instant::now();
        while began.elapsed() < time::Duration::from_millis(500) {
            assert_eq!(list(&mut client).await.len(), 4);
            time::sleep(time::Duration::from_millis(50)).await;
        }
        remove(&mut client, added.member.unwrap().id).await.unwrap();
        let unknown = kontikipb::MemberReplaceRequest::new(7, vec![free_url()]);
        let answer: Result<pb::MemberAddResponse, _> = client.call(path, unknown).await;
        assert_eq!(answer.unwrap_err().message(), "etcdserver: member not found");
        cluster.stop_all().await;
    });
}
