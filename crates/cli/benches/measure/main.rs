//! Measures what a cluster of real servers does in trouble, and prints figures.
//!
//! ```text
//! cargo bench -p kontiki-cli --bench measure -- failover [KILLS]
//! cargo bench -p kontiki-cli --bench measure -- catch-up [MEGABYTES]
//! cargo bench -p kontiki-cli --bench measure -- replace
//! ```
//!
//! Three servers and the load on loopback, data on disk, etcd's default times. The figures are
//! for a quiet machine; `docs/performance.md` says what they mean.
#![expect(clippy::unwrap_used, reason = "a measurement ends where it is surprised")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

#[path = "../../tests/e2e/bystander.rs"]
mod bystander;
#[path = "../../tests/e2e/members.rs"]
mod members;
mod process;
#[path = "../../tests/e2e/proxy.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod proxy;
#[path = "../../tests/e2e/servers.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod servers;
mod writers;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use bystander::Bystander;
use servers::{Servers, run, until};
use writers::Writers;

fn main() -> ExitCode {
    // Cargo adds a flag of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let what = arguments.next().unwrap_or_default();
    let number = arguments.next().and_then(|text| text.parse().ok());
    match what.as_str() {
        "failover" => run(failover(number.unwrap_or(20))),
        "catch-up" => run(catch_up(number.unwrap_or(1024))),
        "replace" => run(replace()),
        _ => {
            eprintln!("measure failover [KILLS] | catch-up [MEGABYTES] | replace");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Three servers as anybody would start them.
async fn cluster(flags: &[&str]) -> Servers {
    let mut servers = Servers::unstarted();
    let defaults =
        ["--heartbeat-interval=100", "--election-timeout=1000", "--log-segment-bytes=67108864"];
    defaults.iter().chain(flags).for_each(|flag| servers.set_flag(flag));
    servers.start_all().await;
    servers
}

async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// How long no write succeeds after the death of a leader.
async fn failover(kills: usize) {
    let mut servers = cluster(&[]).await;
    let writers = Writers::start(&servers, 16).await;
    let mut gaps = Vec::new();
    for number in 1..=kills {
        pause(2).await;
        let leader = servers.leader().await;
        let moment = Instant::now();
        servers.kill(leader);
        until("a write after the kill", async || writers.has_written_since(moment)).await;
        let gap = writers.longest_gap(moment, Instant::now());
        println!("kill {number}: no write for {} ms", gap.as_millis());
        gaps.push(gap);
        servers.start(leader);
        servers.until_ready(leader).await;
    }
    gaps.sort_unstable();
    let (least, most) = (gaps[0], gaps[gaps.len() - 1]);
    println!(
        "kill -9 of the leader, {kills} times: no write for {} ms (median), {} to {} ms",
        gaps[gaps.len() / 2].as_millis(),
        least.as_millis(),
        most.as_millis()
    );
}

/// Writes should never wait longer for a snapshot.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long a follower without data takes to get all of them, what memory it costs, and how
/// long writers wait meanwhile.
async fn catch_up(megabytes: usize) {
    // So little log that the follower needs a snapshot.
    let little = ["--log-keep-bytes=1048576", "--log-bytes-max=8388608"];
    let mut servers = cluster(&[&little[..], &["--log-segment-bytes=4194304"]].concat()).await;
    let follower = (servers.leader().await + 1) % 3;
    servers.kill(follower);
    let began = Instant::now();
    writers::fill(&servers, follower, megabytes).await;
    println!("{megabytes} MB of state after {:.1} s", began.elapsed().as_secs_f64());
    println!("log and snapshots of the leader: {}", process::files(&servers));

    let writers = Writers::start(&servers, 8).await;
    let leader = servers.leader().await;
    let bystander = Bystander::start(servers.dir.path());
    pause(10).await;
    let (from, to) = (Instant::now() - Duration::from_secs(9), Instant::now());
    let (calm, calm_disk) = (writers.longest_gap(from, to), bystander.longest(from, to));
    let idle = process::Memory::of(servers.process(leader));
    process::forget_peak(servers.process(leader));

    let began = Instant::now();
    servers.start(follower);
    // It answers a linearizable read once it has everything.
    writers::until_caught_up(&servers, follower).await;
    let took = began.elapsed();
    let worst = writers.longest_gap(began, Instant::now());
    let worst_disk = bystander.longest(began, Instant::now());
    let pauses = writers.gaps_over(began, Instant::now(), PAUSE_MAX);
    let (sender, receiver) = (servers.process(leader), servers.process(follower));
    let (sent, received) = (process::Memory::of(sender), process::Memory::of(receiver));
    pause(10).await;
    let rest = process::Memory::of(receiver);
    println!("caught up after {:.1} s", took.as_secs_f64());
    println!("longest write pause: {} ms, {} ms before", worst.as_millis(), calm.as_millis());
    println!(
        "of a bystander on the disk: {} ms, {} ms before",
        worst_disk.as_millis(),
        calm_disk.as_millis()
    );
    println!("{pauses} pauses of more than {} ms", PAUSE_MAX.as_millis());
    println!("leader:   {} MB above idle ({idle} before, {sent} after)", sent.peak - idle.now);
    println!(
        "follower: {} MB above idle ({received} when done, {rest} at rest)",
        received.peak.saturating_sub(rest.now)
    );
    println!("files now: {}", process::files(&servers));
}

/// How long no write succeeds while a follower is replaced by a new server.
async fn replace() {
    let mut servers = cluster(&[]).await;
    let writers = Writers::start(&servers, 16).await;
    pause(5).await;
    let old = (servers.leader().await + 1) % 3;
    let (began, before) = (Instant::now(), writers.count());
    let new = servers.replace(old).await;
    let took = began.elapsed();
    pause(2).await;
    let gap = writers.longest_gap(began, Instant::now());
    println!("{} is replaced by {}", servers.name(old), servers.name(new));
    println!(
        "after {:.1} s; longest write gap {} ms, {} writes meanwhile",
        took.as_secs_f64(),
        gap.as_millis(),
        writers.count() - before
    );
}
