//! `kontiki bench`: a closed loop of clients, for any server that speaks etcd's API.
//!
//! Everything runs on one thread with few connections, so that the client takes little of the
//! machine that it measures. Each client waits for its answer before it asks again; latency is
//! what one operation took, and the longest gap is the longest time in which none succeeded.

mod tally;
mod work;

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use etcd_client::KvClient;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{sync::Notify, task::LocalSet, time};

use crate::{client, duration, failure::Failure};
use tally::Tally;
use work::Workload;

const HELP: &str = "\
Examples:
  kontiki bench put --clients 256
  kontiki bench get --clients 64 --endpoints 127.0.0.1:2379,127.0.0.1:2389,127.0.0.1:2399
  kontiki bench range --limit 1000 --clients 16 --json

It speaks plain etcd: the same command measures etcd.";

/// How long a client waits after a failure, so that a dead server is not hammered.
const BACK_OFF: Duration = Duration::from_millis(10);

/// How often the progress bar moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct BenchArgs {
    /// What the clients do
    #[arg(value_enum)]
    work: Work,

    /// Servers to measure, separated by commas; the connections are spread over them
    #[arg(long, env = "KONTIKI_ENDPOINTS", hide_env_values = true, value_delimiter = ',')]
    #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:2379")]
    endpoints: Vec<String>,

    /// Operations in flight at any time
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    clients: usize,

    /// Connections that the clients share
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    conns: usize,

    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value_t = 16)]
    key_size: usize,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    val_size: usize,

    /// Number of different keys; all but put load them first
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    keys: usize,

    /// Keys in one answer of range
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    limit: usize,

    /// Of 100 operations of mixed, how many read
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,

    /// Time to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse)]
    duration: Duration,

    /// Time to run before measuring
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
    warmup: Duration,

    /// Measure this many operations instead of a time
    #[arg(long, value_name = "COUNT", conflicts_with = "duration")]
    total: Option<u64>,

    /// Read from the server's own state, without asking the leader
    #[arg(long)]
    serializable: bool,

    /// After this time an operation has failed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse)]
    timeout: Duration,

    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

/// What the clients do. The variants have no docs, so that clap's help stays short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    Put,
    Get,
    Mixed,
    Txn,
    Range,
}

impl Work {
    const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
            Self::Txn => "txn",
            Self::Range => "range",
        }
    }
}

/// Measures, and returns the text to print.
pub(crate) async fn run(args: BenchArgs) -> Result<String, Failure> {
    if args.clients == 0 || args.conns == 0 || args.keys == 0 {
        return Err(Failure::usage("--clients, --conns and --keys must not be 0"));
    }
    let workload = Rc::new(Workload::new(&args)?);
    let connections = connect(&args).await?;
    if args.work != Work::Put {
        load(&args, &workload, &connections).await?;
    }
    let tally = measure(&args, &workload, &connections).await;
    if let Some(error) = tally.why_nothing_succeeded() {
        return Err(Failure::new(format!("no operation succeeded: {error}")));
    }
    if args.json { Ok(tally.json(&args)) } else { Ok(tally.text(&args)) }
}

/// The connections, spread over the endpoints. An endpoint that cannot be reached is an error:
/// the figures would not be those of the cluster that was named.
async fn connect(args: &BenchArgs) -> Result<Vec<KvClient>, Failure> {
    let mut connections = Vec::new();
    for endpoint in args.endpoints.iter().cycle().take(args.conns.max(args.endpoints.len())) {
        let client = client::connect(endpoint, args.timeout).await?;
        connections.push(client.kv_client().max_decoding_message_size(client::ANSWER_BYTES_MAX));
    }
    Ok(connections)
}

/// Puts every key once.
async fn load(
    args: &BenchArgs,
    workload: &Rc<Workload>,
    connections: &[KvClient],
) -> Result<(), Failure> {
    let bar = progress("loading keys", u64::try_from(args.keys).unwrap_or(u64::MAX));
    let next_key = Rc::new(std::cell::Cell::new(0));
    let clients = LocalSet::new();
    let mut tasks = Vec::new();
    for kv in connections.iter().cycle().take(args.clients.clamp(1, 256)) {
        let (workload, next_key, bar) = (Rc::clone(workload), Rc::clone(&next_key), bar.clone());
        let mut kv = kv.clone();
        tasks.push(clients.spawn_local(async move {
            while next_key.get() < workload.key_count() {
                let index = next_key.replace(next_key.get() + 1);
                workload.put(&mut kv, index).await?;
                bar.inc(1);
            }
            Ok::<(), String>(())
        }));
    }
    let loaded = clients
        .run_until(async {
            for task in tasks {
                task.await
                    .map_err(Failure::new)?
                    .map_err(|error| Failure::new(format!("cannot load the keys: {error}")))?;
            }
            Ok(())
        })
        .await;
    bar.finish_and_clear();
    loaded
}

async fn measure(args: &BenchArgs, workload: &Rc<Workload>, connections: &[KvClient]) -> Tally {
    let measured_from = Instant::now() + args.warmup;
    let tally = Rc::new(RefCell::new(Tally::new(measured_from, args.total)));
    let is_complete = Rc::new(Notify::new());
    let clients = LocalSet::new();
    for kv in connections.iter().cycle().take(args.clients) {
        let (workload, tally) = (Rc::clone(workload), Rc::clone(&tally));
        let (mut kv, timeout) = (kv.clone(), args.timeout);
        let is_complete = Rc::clone(&is_complete);
        clients.spawn_local(async move {
            loop {
                let started = Instant::now();
                let outcome = time::timeout(timeout, workload.operate(&mut kv)).await;
                let outcome = outcome.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                let has_failed = outcome.is_err();
                if tally.borrow_mut().add(started, Instant::now(), outcome) {
                    is_complete.notify_one();
                }
                if has_failed {
                    time::sleep(BACK_OFF).await;
                }
            }
        });
    }
    let title = format!("{}, {} clients", args.work.name(), args.clients);
    clients
        .run_until(async {
            match args.total {
                Some(total) => {
                    let bar = progress(&title, total);
                    tokio::select! {
                        () = is_complete.notified() => {}
                        () = show(&bar, &tally, None) => {}
                    }
                    bar.finish_and_clear();
                }
                None => {
                    let all = args.warmup + args.duration;
                    let bar = progress(&title, u64::try_from(all.as_millis()).unwrap_or(u64::MAX));
                    tokio::select! {
                        () = time::sleep_until((measured_from + args.duration).into()) => {}
                        () = show(&bar, &tally, Some(Instant::now())) => {}
                    }
                    bar.finish_and_clear();
                }
            }
            tally.borrow_mut().finish(Instant::now());
        })
        .await;
    // The clients go with their set; what they had in flight does not count.
    drop(clients);
    Rc::try_unwrap(tally).map_or_else(|shared| shared.borrow().clone(), RefCell::into_inner)
}

/// Moves the bar until the future is dropped: by the time since `since`, or by operations.
async fn show(bar: &ProgressBar, tally: &RefCell<Tally>, since: Option<Instant>) {
    let mut shown = 0;
    loop {
        time::sleep(PROGRESS_INTERVAL).await;
        let done = tally.borrow().done();
        let per_second = (done - shown) * 1000 / 200;
        shown = done;
        bar.set_message(format!("{per_second}/s"));
        match since {
            Some(since) => {
                bar.set_position(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
            }
            None => bar.set_position(tally.borrow().measured()),
        }
    }
}

/// A bar on stderr; nothing is shown if that is no terminal.
fn progress(title: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(title.to_owned());
    bar
}
