//! Who belongs to the cluster: `members` and what changes them, `move-leader`.

use std::{io, time::Duration};

use clap::{Args, Subcommand};
use etcd_client::{Client, Error, Member, MemberAddOptions, MemberListResponse};
use http::uri::PathAndQuery;
use kontiki_server::proto::{etcdserverpb as pb, kontikipb};
use tonic::{Request, Response, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::{ClientArgs, Format, connect, connect_channel, describe};
use crate::failure::Failure;

const EXAMPLES: &str = "\
A server is known by its name or by its id, as `kontiki members` lists them.

Examples:
  kontiki members                                          who is there
  kontiki members add n4 --peer-urls http://10.0.0.4:2380  then start n4 as the answer says
  kontiki members replace n3                               n3's disk is gone: see the answer
  kontiki members remove n3
  kontiki move-leader n2";

const ADD_HELP: &str = "\
The server is a learner at first: it receives everything and does not vote, so one that cannot be
reached costs the cluster nothing. Once it has caught up it is made a voter, unless --learner says
otherwise. The answer shows the command that starts it.";

const REPLACE_HELP: &str = "\
For a server whose disk is lost, or that moves to another machine. The new server joins as a
learner; once it has caught up it takes the place and the vote of the old one in a single step,
and until then nothing changes. The answer shows the command that starts it: with an empty
--data-dir and --initial-cluster-state existing.";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MembersArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
enum Action {
    /// List the members; what `members` does alone
    List,
    /// Add a server
    #[command(after_help = ADD_HELP)]
    Add {
        /// The --name that the new server will have
        name: String,
        /// Where the others will find it
        #[arg(long, value_name = "URL", required = true)]
        peer_urls: String,
        /// Keep it a learner until it is promoted by hand
        #[arg(long)]
        learner: bool,
    },
    /// Put a new server into the place of one that is lost
    #[command(after_help = REPLACE_HELP)]
    Replace {
        /// The server that goes
        #[arg(value_name = "NAME|ID")]
        old: String,
        /// Where the others will find the new one; by default where they found the old one
        #[arg(long, value_name = "URL")]
        peer_urls: Option<String>,
        /// The --name that the new server will have; by default that of the old one
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove a server
    Remove {
        #[arg(value_name = "NAME|ID")]
        member: String,
    },
    /// Make a learner a voter
    Promote {
        #[arg(value_name = "NAME|ID")]
        member: String,
    },
    /// Change where the others find a server
    Update {
        #[arg(value_name = "NAME|ID")]
        member: String,
        /// Where from now on
        #[arg(long, value_name = "URL", required = true)]
        peer_urls: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct MoveLeaderArgs {
    /// The server that is to lead
    #[arg(value_name = "NAME|ID")]
    to: String,
}

pub(super) async fn members(
    args: MembersArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut etcd = client.connect().await?;
    let before = client.within_time(etcd.member_list()).await?;
    let said = match args.action.unwrap_or(Action::List) {
        Action::List => return Ok(client.output(stdout).members(&before)?),
        Action::Add { name, peer_urls, learner } => {
            refuse_used_name(&before, &name, None)?;
            let options = MemberAddOptions::new();
            let options = if learner { options.with_is_learner() } else { options };
            let urls = split(&peer_urls);
            let added = client.within_time(etcd.member_add(urls.clone(), Some(options))).await?;
            let id = added.member().map_or(0, Member::id);
            let fate = if learner {
                "It stays a learner until it is promoted by hand."
            } else {
                "It is a learner until it has caught up, and a voter then by itself."
            };
            let text = told(&before, id, "added to");
            let start = start_command(&before, None, &name, &urls);
            format!("{text}\n{fate}\n{start}\nOr take it back: kontiki members remove {id:x}")
        }
        Action::Replace { old, peer_urls, name } => {
            let old = find(&before, &old)?;
            let urls = peer_urls.as_deref().map_or_else(|| old.peer_urls().to_vec(), split);
            let name = name.unwrap_or_else(|| old.name().to_owned());
            refuse_used_name(&before, &name, Some(old.id()))?;
            let id = replace_at_any(client, old.id(), &urls).await?;
            format!(
                "{}\nIt takes the place of {} once it has caught up.\n{}",
                told(&before, id, "added to"),
                shown(old),
                start_command(&before, Some(old.id()), &name, &urls)
            )
        }
        Action::Remove { member } => {
            let id = find(&before, &member)?.id();
            client.within_time(etcd.member_remove(id)).await?;
            told(&before, id, "removed from")
        }
        Action::Promote { member } => {
            let id = find(&before, &member)?.id();
            client.within_time(etcd.member_promote(id)).await?;
            told(&before, id, "promoted in")
        }
        Action::Update { member, peer_urls } => {
            let id = find(&before, &member)?.id();
            client.within_time(etcd.member_update(id, split(&peer_urls))).await?;
            told(&before, id, "updated in")
        }
    };
    if client.write_out == Format::Simple {
        return Ok(writeln!(stdout, "{said}")?);
    }
    let after = client.within_time(etcd.member_list()).await?;
    Ok(client.output(stdout).members(&after)?)
}

/// etcdctl's words.
fn told(list: &MemberListResponse, id: u64, what: &str) -> String {
    let cluster = list.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
    format!("Member {id:16x} {what} cluster {cluster:16x}")
}

fn split(urls: &str) -> Vec<String> {
    urls.split(',').map(str::to_owned).collect()
}

/// The member that is called `name`, or has this id in hexadecimal.
fn find<'a>(list: &'a MemberListResponse, name: &str) -> Result<&'a Member, Failure> {
    let mut named = list.members().iter().filter(|member| member.name() == name);
    match (named.next(), named.next()) {
        (Some(member), None) => return Ok(member),
        (Some(_), Some(_)) => {
            return Err(Failure::new(format!(
                "several members are called {name}: name one by its id, see `kontiki members`"
            )));
        }
        (None, _) => {}
    }
    let id = u64::from_str_radix(name.strip_prefix("0x").unwrap_or(name), 16).ok();
    let member = list.members().iter().find(|member| Some(member.id()) == id);
    member.ok_or_else(|| {
        let known: Vec<String> = list.members().iter().map(shown).collect();
        Failure::new(format!(
            "no member is called {name}; there are: {} (one that has not started yet has no name, \
             only its id)",
            known.join(", ")
        ))
    })
}

/// Refuses a name by which another member than `except` goes. The servers cannot: in etcd's API
/// a member has no name until it has started.
fn refuse_used_name(
    list: &MemberListResponse,
    name: &str,
    except: Option<u64>,
) -> Result<(), Failure> {
    let mut others = list.members().iter().filter(|member| Some(member.id()) != except);
    match others.find(|member| member.name() == name && !name.is_empty()) {
        Some(used) => Err(Failure::new(format!(
            "{name} is the name of the member {:x} already: choose another, or put a new server \
             into its place with `kontiki members replace {name}`",
            used.id()
        ))),
        None => Ok(()),
    }
}

/// A member as a person would call it.
fn shown(member: &Member) -> String {
    if member.name().is_empty() { format!("{:x}", member.id()) } else { member.name().to_owned() }
}

/// How the new server is started. `gone` is not of those that it asks.
fn start_command(
    list: &MemberListResponse,
    gone: Option<u64>,
    name: &str,
    urls: &[String],
) -> String {
    let others = list.members().iter().filter(|member| Some(member.id()) != gone);
    let others = others.filter(|member| !member.name().is_empty() && member.name() != name);
    let mut cluster: Vec<String> = others
        .flat_map(|member| member.peer_urls().iter().map(|url| format!("{}={url}", member.name())))
        .collect();
    cluster.extend(urls.iter().map(|url| format!("{name}={url}")));
    format!(
        "\nStart it, with an empty data directory:\n  kontiki serve --name {name} \
         --data-dir {name}.kontiki --initial-cluster-state existing \\\n    \
         --initial-cluster {} \\\n    --listen-peer-urls {} --listen-client-urls http://HOST:2379",
        cluster.join(","),
        urls.join(","),
    )
}

/// Asks one of the endpoints for what etcd's API has no words for.
async fn replace_at_any(client: &ClientArgs, old: u64, urls: &[String]) -> Result<u64, Failure> {
    let mut reasons = Vec::new();
    for endpoint in &client.endpoints {
        match connect_channel(endpoint, client.dial_timeout).await {
            Ok(channel) => {
                let call = call_replace(channel, old, urls.to_vec());
                return client.within_time(call).await;
            }
            Err(failure) if failure.is_usage() => return Err(failure),
            Err(failure) => reasons.push(failure.to_string()),
        }
    }
    Err(Failure::new(reasons.join("\n       ")))
}

/// Has a new server at `urls` take the place of the member `old`, and returns its id.
pub(crate) async fn replace(
    endpoint: &str,
    dial_timeout: Duration,
    old: u64,
    urls: Vec<String>,
) -> Result<u64, Failure> {
    let channel = connect_channel(endpoint, dial_timeout).await?;
    let replaced = call_replace(channel, old, urls).await;
    replaced.map_err(|error| Failure::new(describe(&error)))
}

async fn call_replace(channel: Channel, old: u64, urls: Vec<String>) -> Result<u64, Error> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let request = Request::new(kontikipb::MemberReplaceRequest::new(old, urls));
    let path = PathAndQuery::from_static("/kontikipb.Cluster/MemberReplace");
    let answer: Response<pb::MemberAddResponse> =
        grpc.unary(request, path, ProstCodec::default()).await?;
    Ok(answer.into_inner().member.map_or(0, |member| member.id))
}

/// Finds the leader among the members and has it hand over.
pub(super) async fn move_leader(
    args: &MoveLeaderArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let list = client.within_time(client.connect().await?.member_list()).await?;
    let to = find(&list, &args.to)?.id();
    let (mut leader, from) = leader(&list, client).await?;
    client.within_time(leader.move_leader(to)).await?;
    Ok(writeln!(stdout, "Leadership transferred from {from:x} to {to:x}")?)
}

/// A client of the leader, and its id.
async fn leader(list: &MemberListResponse, client: &ClientArgs) -> Result<(Client, u64), Failure> {
    let told = list.members().iter().flat_map(|member| member.client_urls());
    for endpoint in client.endpoints.iter().chain(told) {
        let Ok(mut candidate) = connect(endpoint, client.dial_timeout).await else { continue };
        let Ok(status) = client.within_time(candidate.status()).await else { continue };
        let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
        if status.leader() == id {
            return Ok((candidate, id));
        }
    }
    Err(Failure::new(
        "the leader was not found: none of --endpoints leads, nor any server that the members \
         list can be reached at",
    ))
}
