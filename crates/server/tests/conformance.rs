//! Sessions with a server, and what etcd 3.5.1 answered in them.
//!
//! Each file in `tests/scripts` is a session with a new server. The answers in it were recorded
//! from a real etcd and are compared with ours, revision by revision. To record them anew:
//!
//! ```text
//! KONTIKI_RECORD_FROM=$(which etcd) UPDATE_GOLDENFILES=1 cargo test -p kontiki-server --test conformance
//! ```

mod harness;

use std::{
    env,
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use goldenscript::{Context, Runner};
use harness::{
    Cluster, PATIENCE,
    client::Client,
    free_ports,
    language::{self, Call},
};
use kontiki_server::proto::etcdserverpb as pb;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::Status;

/// Who answers.
enum Target {
    Ours(Cluster),
    Etcd { process: Child, _dir: TempDir },
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::Etcd { process, .. } = self {
            process.kill().expect("it was started by us");
            process.wait().expect("it was started by us");
        }
    }
}

struct Session {
    runtime: Runtime,
    client: Client,
    target: Target,
}

impl Session {
    fn start() -> Self {
        let runtime = harness::runtime();
        let (target, address) = match env::var("KONTIKI_RECORD_FROM") {
            Ok(etcd) => start_etcd(&etcd),
            Err(_) => {
                let cluster = runtime.block_on(Cluster::start(1));
                let address = cluster.server(0).client_addresses()[0];
                (Target::Ours(cluster), address)
            }
        };
        let client = runtime.block_on(Client::connect(address));
        Self { runtime, client, target }
    }

    fn end(mut self) {
        if let Target::Ours(cluster) = &mut self.target {
            self.runtime.block_on(cluster.stop_all());
        }
    }
}

fn start_etcd(program: &str) -> (Target, SocketAddr) {
    let dir = TempDir::new().expect("a directory");
    let ports = free_ports(2);
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
    let process = Command::new(program)
        .args(["--data-dir", &dir.path().join("etcd").display().to_string()])
        .args(["--listen-client-urls", &format!("http://{client}")])
        .args(["--advertise-client-urls", &format!("http://{client}")])
        .args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", ports[1])])
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts");
    let began = Instant::now();
    while std::net::TcpStream::connect(client).is_err() {
        assert!(began.elapsed() < PATIENCE, "etcd does not listen");
        std::thread::yield_now();
    }
    (Target::Etcd { process, _dir: dir }, client)
}

impl Runner for Session {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &Self::Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let call = language::parse(&command.name)?;
        let answer: Result<String, Status> = self.runtime.block_on(async {
            let client = &mut self.client;
            Ok(match call {
                Call::Path(path) => {
                    let _: pb::ResponseHeader =
                        client.call(&path, pb::MemberListRequest::default()).await?;
                    "an answer\n".to_owned()
                }
                Call::Health(service) => format!("{}\n", client.health(&service).await?),
                Call::Range(call) => language::show_range(&client.range(call).await?),
                Call::Put(call) => language::show_put(&client.put(call).await?),
                Call::DeleteRange(call) => language::show_delete(&client.delete_range(call).await?),
                Call::Txn(call) => language::show_txn(&client.txn(call).await?),
                Call::Compact(call) => language::show_compact(&client.compact(call).await?),
            })
        });
        Ok(match answer {
            Ok(answer) => answer,
            Err(status) => format!("{:?}: {}\n", status.code(), status.message()),
        })
    }
}

fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(name);
    let mut session = Session::start();
    goldenscript::run(&mut session, path).expect("the script can be read");
    session.end();
}

macro_rules! sessions {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                play(concat!(stringify!($name), ".txt"));
            }
        )*

        #[test]
        fn no_script_is_forgotten() {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
            let count = std::fs::read_dir(dir).unwrap().count();
            assert_eq!(count, [$(stringify!($name)),*].len());
        }
    };
}

sessions! {
    a_range_has_rules_for_everything
    puts_keep_and_replace
    deletions_share_a_revision
    transactions_guard_and_order
    transactions_are_checked_before_they_are_proposed
    transactions_nest
    compaction_forgets
    large_requests_are_refused
    methods_that_are_not_there
}
