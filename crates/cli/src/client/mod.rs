//! The commands that talk to a running cluster: put, get, del, txn, compact, status, members,
//! move-leader, alarm.
//!
//! They follow etcdctl in flags and output. What is told apart here: a server that could not be
//! reached (the next endpoint is tried, nothing was sent), a server that refused (its own
//! words, nothing is tried again), and an answer that did not come in time (the outcome of a
//! write is then unknown, and the message says so).

mod alarm;
mod cluster;
mod kv;
mod members;
mod output;
mod txn;
mod txn_text;

use std::{error::Error as _, future::Future, io, time::Duration};

use clap::{Args, Subcommand};
use etcd_client::{Channel, Client, Error};
use tonic::transport::Endpoint;

use crate::{duration, failure::Failure};
use output::Output;

pub(crate) use members::replace;
pub(crate) use output::Format;

/// Answers are as large as the server lets them be; the client does not judge.
pub(crate) const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Flags of every client command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Client options")]
pub(crate) struct ClientArgs {
    /// Servers to talk to, separated by commas; the first that can be reached is used
    #[arg(long, global = true, env = "KONTIKI_ENDPOINTS", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: Vec<String>,

    /// How to print the answer
    #[arg(
        short = 'w',
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "simple"
    )]
    write_out: Format,

    /// Print keys and values as \x00 escapes (with -w simple)
    #[arg(long, global = true)]
    hex: bool,

    /// Time to wait for a connection to a server
    #[arg(long, global = true, value_name = "TIME", default_value = "2s", value_parser = duration::parse)]
    dial_timeout: Duration,

    /// Time to wait for an answer
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = duration::parse)]
    command_timeout: Duration,
}

/// The client commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Put a key; the value may come from stdin
    #[command(after_help = "Examples:\n  kontiki put hello world\n  kontiki put config < file")]
    Put(Call<kv::PutArgs>),
    /// Get a key, a range of keys or all keys with a prefix
    #[command(after_help = GET_EXAMPLES)]
    Get(Call<kv::GetArgs>),
    /// Delete a key, a range of keys or all keys with a prefix
    Del(Call<kv::DelArgs>),
    /// Run a transaction that is read from stdin
    #[command(after_help = txn_text::HELP)]
    Txn(Call<txn::TxnArgs>),
    /// Forget the history before a revision
    #[command(visible_alias = "compaction")]
    Compact(Call<kv::CompactArgs>),
    /// Show role, term and index of each endpoint
    Status(Call<cluster::StatusArgs>),
    /// List the members of the cluster; add, replace or remove one
    #[command(alias = "member", args_conflicts_with_subcommands = false)]
    Members(Call<members::MembersArgs>),
    /// Have another server lead
    MoveLeader(Call<members::MoveLeaderArgs>),
    /// List what is wrong with members
    Alarm(Call<alarm::AlarmArgs>),
}

const GET_EXAMPLES: &str = "Examples:
  kontiki get hello
  kontiki get a f                        keys in [a, f)
  kontiki get user/ --prefix --keys-only
  kontiki get hello --rev 7              as it was at revision 7
  kontiki get user/ --prefix --sort-by modify --order descend --limit 10";

/// A command's own flags and those of its connection.
#[derive(Args, Debug)]
pub(crate) struct Call<T: Args> {
    #[command(flatten)]
    call: T,
    #[command(flatten)]
    client: ClientArgs,
}

impl ClientCommand {
    /// Runs the command; what it prints goes to `stdout`.
    pub(crate) async fn run(self, stdout: &mut dyn io::Write) -> Result<(), Failure> {
        match self {
            Self::Put(Call { call, client }) => kv::put(&call, &client, stdout).await,
            Self::Get(Call { call, client }) => kv::get(&call, &client, stdout).await,
            Self::Del(Call { call, client }) => kv::del(&call, &client, stdout).await,
            Self::Txn(Call { call, client }) => txn::txn(&call, &client, stdout).await,
            Self::Compact(Call { call, client }) => kv::compact(&call, &client, stdout).await,
            Self::Status(Call { call, client }) => cluster::status(&call, &client, stdout).await,
            Self::Members(Call { call, client }) => members::members(call, &client, stdout).await,
            Self::Alarm(Call { call, client }) => alarm::alarm(&call, &client, stdout).await,
            Self::MoveLeader(Call { call, client }) => {
                members::move_leader(&call, &client, stdout).await
            }
        }
    }
}

impl ClientArgs {
    fn output<'a>(&self, stdout: &'a mut dyn io::Write) -> Output<'a> {
        Output { stdout, format: self.write_out, hex: self.hex }
    }

    /// A client of the first endpoint that accepts a connection.
    async fn connect(&self) -> Result<Client, Failure> {
        let mut reasons = Vec::new();
        for endpoint in &self.endpoints {
            match connect(endpoint, self.dial_timeout).await {
                Ok(client) => return Ok(client),
                Err(failure) if failure.is_usage() => return Err(failure),
                Err(failure) => reasons.push(failure.to_string()),
            }
        }
        Err(Failure::new(reasons.join("\n       ")))
    }

    /// Waits for `call`, at most the command's time.
    async fn within_time<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.command_timeout, call).await {
            Ok(answer) => answer.map_err(|error| Failure::new(describe(&error))),
            Err(_) => Err(Failure::new(format!(
                "no answer within {:?} (--command-timeout); if it was a write, it may or may not \
                 have been done; kontiki status --cluster says whether there is a leader",
                self.command_timeout
            ))),
        }
    }
}

/// Connects to one server, named `host:port` or `http://host:port`.
pub(crate) async fn connect(endpoint: &str, dial_timeout: Duration) -> Result<Client, Failure> {
    let channel = connect_channel(endpoint, dial_timeout).await?;
    Client::from_channel(Channel::Tonic(channel), None)
        .await
        .map_err(|error| Failure::new(describe(&error)))
}

/// The connection below [`connect`].
async fn connect_channel(
    endpoint: &str,
    dial_timeout: Duration,
) -> Result<tonic::transport::Channel, Failure> {
    let url = match endpoint.split_once("://") {
        None => format!("http://{endpoint}"),
        Some(("http", _)) => endpoint.to_owned(),
        Some((scheme, _)) => {
            return Err(Failure::usage(format!(
                "--endpoints {endpoint}: `{scheme}` is not supported, only http"
            )));
        }
    };
    let bad = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("--endpoints {endpoint}: not HOST:PORT ({error})"))
    };
    Endpoint::from_shared(url)
        .map_err(|error| bad(&error))?
        .connect_timeout(dial_timeout)
        .connect()
        .await
        .map_err(|error| Failure::new(format!("cannot reach {endpoint}: {}", root_cause(&error))))
}

/// The server's own words, or what happened to the connection.
pub(crate) fn describe(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) if status.source().is_some() => {
            format!("{}: {}", status.message(), root_cause(status))
        }
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => root_cause(other),
    }
}

/// The innermost error: `connection refused` says more than `transport error`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
