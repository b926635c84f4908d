//! The servers of a development cluster: their addresses, commands and processes.

use std::{
    env, fmt,
    fs::{self, File, OpenOptions},
    io,
    net::TcpListener,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time;

use crate::failure::Failure;

/// Tells, in the data directory, how the cluster was made.
const DESCRIPTION: &str = "dev.json";

/// How long servers may take to stop in order.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Leaders are replaced sooner than by default, for all servers share one machine and its
/// network cannot be slow; and segments are shorter, so that a start does not wait for the disk.
const SETTINGS: [&str; 6] =
    ["--heartbeat-interval", "50", "--election-timeout", "500", "--log-segment-bytes", "16777216"];

/// What must stay as it is while the data lives.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Description {
    nodes: u16,
    base_port: u16,
}

pub(super) struct Cluster {
    pub(super) servers: Vec<Server>,
    data_dir: PathBuf,
    is_new: bool,
}

/// One server and its process.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) client_port: u16,
    peer_port: u16,
    pub(super) command: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

struct Process {
    child: Child,
    /// The server stops when this is closed.
    lifeline: Option<ChildStdin>,
}

impl Cluster {
    /// Starts all servers. Nothing is started if a port is taken or the directory holds another
    /// cluster.
    pub(super) fn start(data_dir: &Path, nodes: u16, base_port: u16) -> Result<Self, Failure> {
        let program = env::current_exe()
            .map_err(|error| Failure::new(format!("cannot find this program: {error}")))?;
        let description = Description { nodes, base_port };
        let is_new = description.is_new_in(data_dir)?;
        let mut servers = plan(data_dir, nodes, base_port)?;
        for server in &servers {
            server.check_ports()?;
        }
        if is_new {
            description.write(data_dir)?;
        }
        for server in &mut servers {
            server.start(&program)?;
        }
        Ok(Self { servers, data_dir: data_dir.to_path_buf(), is_new })
    }

    pub(super) fn greeting(&self) -> String {
        format!(
            "{} servers, {} data in {}",
            self.servers.len(),
            if self.is_new { "new" } else { "going on with the" },
            self.data_dir.display()
        )
    }

    /// The address of a server for clients.
    pub(super) fn endpoint(&self, index: usize) -> String {
        self.servers
            .get(index)
            .map_or_else(String::new, |server| format!("127.0.0.1:{}", server.client_port))
    }

    /// Asks all servers to stop and waits for them; kills those that do not.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        for process in self.processes() {
            process.lifeline = None;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if self.processes().all(|process| !matches!(process.child.try_wait(), Ok(None))) {
                return Ok(());
            }
            time::sleep(Duration::from_millis(20)).await;
        }
        self.kill()
    }

    /// Ends all servers at once.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let running: Vec<String> = self
            .servers
            .iter_mut()
            .filter_map(|server| {
                let process = server.process.as_mut()?;
                let is_running = matches!(process.child.try_wait(), Ok(None));
                process.kill();
                is_running.then(|| server.name.clone())
            })
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("{} did not stop in order and was killed", running.join(", "))))
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.servers.iter_mut().filter_map(|server| server.process.as_mut())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.processes().for_each(Process::kill);
    }
}

impl Process {
    fn kill(&mut self) {
        // Errors mean that it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(&mut self, program: &Path) -> Result<(), Failure> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log: File = log.map_err(|error| {
            Failure::new(format!("cannot write the log {}: {error}", self.log.display()))
        })?;
        let mut child = Command::new(program)
            .args(self.command.iter().skip(1))
            .arg("--stop-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches us alone, and we stop the servers.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::new(format!("cannot start {}: {error}", self.name)))?;
        let lifeline = child.stdin.take();
        self.process = Some(Process { child, lifeline });
        Ok(())
    }

    /// The process ID, and how it ended if it has.
    pub(super) fn process(&mut self) -> (u32, Option<ExitStatus>) {
        match &mut self.process {
            Some(process) => (process.child.id(), process.child.try_wait().ok().flatten()),
            None => (0, None),
        }
    }

    /// How the process ended, and the last words of its log if it ended by itself.
    pub(super) fn obituary(&self, status: ExitStatus) -> String {
        match status.signal() {
            Some(signal) => format!("{} was killed by signal {signal}", self.name),
            None => {
                let code = status.code().unwrap_or_default();
                format!("{} ended with code {code}: {}", self.name, self.last_words())
            }
        }
    }

    /// The last line of the log that says anything.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(line)
            .ok()
            .and_then(|line| line.get("msg")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| line.to_owned())
    }

    fn check_ports(&self) -> Result<(), Failure> {
        for (port, whose) in [(self.client_port, "clients"), (self.peer_port, "the other servers")]
        {
            TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
                let name = &self.name;
                let reason = match error.kind() {
                    io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
                    _ => error.to_string(),
                };
                Failure::new(format!(
                    "port {port} is needed by {name} for {whose}, and {reason}; \
                     choose others with --base-port"
                ))
            })?;
        }
        Ok(())
    }
}

impl Description {
    /// False if the directory holds this cluster already; an error if it holds another.
    fn is_new_in(&self, data_dir: &Path) -> Result<bool, Failure> {
        let path = data_dir.join(DESCRIPTION);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            read => read.map_err(|error| cannot_use(data_dir, &error))?,
        };
        let found: Self = serde_json::from_slice(&bytes).map_err(|error| {
            cannot_use(data_dir, &format_args!("{} is damaged: {error}", path.display()))
        })?;
        if found == *self {
            return Ok(false);
        }
        let Self { nodes, base_port } = found;
        Err(Failure::usage(format!(
            "{} holds a cluster of {nodes} servers from port {base_port}: go on with it by \
             --nodes {nodes} --base-port {base_port}, or choose another --data-dir",
            data_dir.display(),
        )))
    }

    fn write(&self, data_dir: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string(self).map_err(Failure::new)?;
        fs::create_dir_all(data_dir)
            .and_then(|()| fs::write(data_dir.join(DESCRIPTION), text))
            .map_err(|error| cannot_use(data_dir, &error))
    }
}

fn cannot_use(data_dir: &Path, why: &dyn fmt::Display) -> Failure {
    Failure::new(format!("cannot use --data-dir {}: {why}", data_dir.display()))
}

/// Addresses and commands of all servers.
fn plan(data_dir: &Path, nodes: u16, base_port: u16) -> Result<Vec<Server>, Failure> {
    let port = |index: u16, extra: u16| base_port.checked_add(10 * index + extra);
    if port(nodes - 1, 1).is_none() {
        return Err(Failure::usage(format!(
            "--base-port {base_port} leaves no room for all ports"
        )));
    }
    let ports = |index| (port(index, 0).unwrap_or_default(), port(index, 1).unwrap_or_default());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> =
        (0..nodes).map(|index| format!("n{}={}", index + 1, url(ports(index).1))).collect();
    let members = members.join(",");
    let servers = (0..nodes).map(|index| {
        let (client_port, peer_port) = ports(index);
        let name = format!("n{}", index + 1);
        let mut command = vec![shown_program(), "serve".to_owned()];
        let mut flag = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
        flag("--name", name.clone());
        flag("--data-dir", data_dir.join(&name).display().to_string());
        flag("--listen-client-urls", url(client_port));
        flag("--listen-peer-urls", url(peer_port));
        flag("--initial-cluster", members.clone());
        flag("--initial-cluster-token", format!("dev-{base_port}"));
        command.extend(SETTINGS.map(str::to_owned));
        let log = data_dir.join(format!("{name}.log"));
        Server { name, client_port, peer_port, command, log, process: None }
    });
    Ok(servers.collect())
}

/// This program as a person would type it.
pub(super) fn shown_program() -> String {
    let typed = env::args().next().unwrap_or_else(|| "kontiki".to_owned());
    let here = env::current_dir().unwrap_or_default();
    match Path::new(&typed).strip_prefix(here) {
        Ok(relative) => relative.display().to_string(),
        Err(_) => typed,
    }
}
