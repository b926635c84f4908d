//! The `kontiki` binary: starts servers, talks to them, measures them, tests the protocol.

mod arguments;
mod bench;
mod client;
mod dev;
mod duration;
mod failure;
mod labs;
mod rebuild;
mod serve;
mod sim;

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use client::ClientCommand;
use failure::Failure;

const SESSION: &str = "\
A session:
  kontiki dev                                   three servers on this machine; Ctrl-C stops them
  kontiki put hello world
  kontiki get hello --endpoints 127.0.0.1:2389  another server has it too
  kontiki status --cluster                      who leads; kill it with kill -9, and go on
  etcdctl get hello                             etcd's tools and clients work unchanged";

/// A key-value store on Raft that speaks etcd's v3 API and loses nothing when servers die
#[derive(Debug, Parser)]
#[command(name = "kontiki", version, after_help = SESSION, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster on this machine
    Dev(dev::DevArgs),
    /// Run one server
    Serve(Box<serve::ServeArgs>),
    /// Measure a cluster, ours or etcd's
    Bench(Box<bench::BenchArgs>),
    /// Run the labs of the Raft course in simulated worlds
    Labs(labs::LabsArgs),
    /// Run random worlds with every fault there is
    Sim(sim::SimArgs),
    /// Make a cluster of the one server that is left, and lose what it has not received
    Rebuild(rebuild::RebuildArgs),
    #[command(flatten)]
    Client(Box<ClientCommand>),
}

fn main() -> ExitCode {
    let args = arguments::normalized(env::args_os());
    let command = arguments::with_environment(Cli::command());
    let parsed =
        command.try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only if nobody can see it.
            drop(error.print());
            if let Some(origin) = arguments::environment_at_fault(&error, &args) {
                complain(&format!("the value is that of the environment variable {origin}"));
            }
            if let Some(advice) = arguments::advice(&error, &args) {
                complain(&advice);
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                complain(message);
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    match command {
        Command::Dev(args) => one_thread()?.block_on(dev::run(args)),
        Command::Serve(args) => serve::run(&args),
        Command::Labs(args) => labs::run(args, &mut stdout),
        Command::Sim(args) => sim::run(&args, &mut stdout),
        Command::Rebuild(args) => rebuild::run(args, &mut stdout),
        Command::Bench(args) => {
            let report = one_thread()?.block_on(bench::run(*args))?;
            stdout.write_all(report.as_bytes())?;
            Ok(stdout.flush()?)
        }
        Command::Client(command) => {
            one_thread()?.block_on(command.run(&mut stdout))?;
            Ok(stdout.flush()?)
        }
    }
}

/// A runtime on the calling thread.
fn one_thread() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)
}

#[expect(clippy::print_stderr, reason = "where a program says why it failed")]
fn complain(message: &str) {
    eprintln!("Error: {message}");
}
