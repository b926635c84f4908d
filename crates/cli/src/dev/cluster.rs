//! The servers of a development cluster: their addresses, commands and processes.

use std::{
    env, fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _},
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

/// What to do about a program on a port that cannot be another.
const END_IT: &str = "end it and try again";

/// Leaders are replaced sooner than by default, for all servers share one machine and its
/// network cannot be slow; and segments are shorter, so that a start does not wait for the disk.
const SETTINGS: [&str; 6] =
    ["--heartbeat-interval", "50", "--election-timeout", "500", "--log-segment-bytes", "16777216"];

/// What must stay as it is while the data lives, and who has come and gone since.
#[derive(Debug, Deserialize, Serialize)]
struct Description {
    nodes: u16,
    base_port: u16,
    /// Numbers of servers that were added, or have taken the place of one that was lost.
    #[serde(default)]
    joiners: Vec<u16>,
    /// Numbers of founders that were removed.
    #[serde(default)]
    removed: Vec<u16>,
    /// The highest number that was ever given.
    #[serde(default)]
    highest: u16,
    /// Of this run: the flag of each server.
    #[serde(skip)]
    cache_bytes: Option<usize>,
}

pub(super) struct Cluster {
    pub(super) servers: Vec<Server>,
    description: Description,
    program: PathBuf,
    data_dir: PathBuf,
    is_new: bool,
}

/// One server and its process.
pub(super) struct Server {
    pub(super) name: String,
    number: u16,
    pub(super) client_port: u16,
    peer_port: u16,
    pub(super) command: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

/// What another process is told of a server.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Seat {
    pub(super) name: String,
    /// Where clients reach it.
    pub(super) endpoint: String,
    pub(super) peer_url: String,
    pub(super) is_running: bool,
    /// How its process ended, if it has.
    #[serde(default)]
    pub(super) ended: Option<String>,
}

struct Process {
    child: Child,
    /// The server stops when this is closed.
    lifeline: Option<ChildStdin>,
}

impl Cluster {
    /// Starts all servers. Nothing is started if a port is taken or the directory holds another
    /// cluster.
    pub(super) fn start(
        data_dir: &Path,
        (nodes, base_port): (u16, u16),
        cache_bytes: Option<usize>,
    ) -> Result<Self, Failure> {
        let program = env::current_exe()
            .map_err(|error| Failure::new(format!("cannot find this program: {error}")))?;
        let known = Description::read(data_dir)?;
        let is_new = known.is_none();
        let mut description = known.unwrap_or_else(|| Description::new(nodes, base_port));
        description.cache_bytes = cache_bytes;
        description.check(data_dir, nodes, base_port)?;
        let numbers = description.numbers();
        let servers = numbers.iter().map(|&number| description.plan(data_dir, number));
        let mut servers = servers.collect::<Result<Vec<_>, _>>()?;
        // The ports of a cluster that is there stay what they are.
        let advice = if is_new {
            "choose others with --base-port"
        } else {
            "end it, or make another cluster with --base-port and --data-dir"
        };
        for server in &servers {
            server.check_ports(advice)?;
        }
        if is_new {
            description.write(data_dir)?;
        }
        for server in &mut servers {
            server.start(&program)?;
        }
        Ok(Self { servers, description, program, data_dir: data_dir.to_path_buf(), is_new })
    }

    /// The server that is to be added: it is not started and not remembered yet.
    pub(super) fn planned(&self) -> Result<Seat, Failure> {
        let number = self.description.highest + 1;
        let server = self.description.plan(&self.data_dir, number)?;
        server.check_ports(END_IT)?;
        Ok(server.seat())
    }

    /// All servers.
    pub(super) fn seats(&mut self) -> Vec<Seat> {
        self.servers
            .iter_mut()
            .map(|server| {
                let is_running = server.is_running();
                let ended = server.process().1.map(|status| server.obituary(status));
                Seat { is_running, ended, ..server.seat() }
            })
            .collect()
    }

    /// Starts a server that does not run.
    pub(super) fn start_one(&mut self, name: &str) -> Result<(), Failure> {
        let program = self.program.clone();
        let server = self.find(name)?;
        if server.is_running() {
            return Err(Failure::new(format!("{name} runs already")));
        }
        server.check_ports(END_IT)?;
        server.start(&program)
    }

    /// Starts a server that the members know already, with an empty data directory: a new one,
    /// or one of this name that has to give way.
    pub(super) fn join(&mut self, name: &str) -> Result<(), Failure> {
        let number = name.strip_prefix('n').and_then(|number| number.parse().ok());
        let highest = self.description.highest;
        let Some(number @ 1..) = number.filter(|number| *number <= highest + 1) else {
            return Err(Failure::new(format!("{name} is not the name of a server")));
        };
        self.end(name)?;
        let dir = self.data_dir.join(name);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::new(format!("cannot remove {}: {error}", dir.display())));
            }
            _ => {}
        }
        self.description.add(number);
        self.description.write(&self.data_dir)?;
        self.servers.retain(|server| server.number != number);
        self.servers.push(self.description.plan(&self.data_dir, number)?);
        self.servers.sort_by_key(|server| server.number);
        self.start_one(name)
    }

    /// Ends a server at once, if it runs.
    pub(super) fn end(&mut self, name: &str) -> Result<(), Failure> {
        let servers = self.servers.iter_mut().filter(|server| server.name == name);
        servers.filter_map(|server| server.process.as_mut()).for_each(Process::kill);
        Ok(())
    }

    /// Asks a server to stop.
    pub(super) fn stop_one(&mut self, name: &str) -> Result<(), Failure> {
        if let Some(process) = &mut self.find(name)?.process {
            process.lifeline = None;
        }
        Ok(())
    }

    /// Ends a server that is no member any more, and forgets it.
    pub(super) fn forget(&mut self, name: &str) -> Result<(), Failure> {
        let number = self.find(name)?.number;
        self.end(name)?;
        self.description.remove(number);
        self.description.write(&self.data_dir)?;
        self.servers.retain(|server| server.number != number);
        Ok(())
    }

    fn find(&mut self, name: &str) -> Result<&mut Server, Failure> {
        let known: Vec<String> = self.servers.iter().map(|server| server.name.clone()).collect();
        let server = self.servers.iter_mut().find(|server| server.name == name);
        server.ok_or_else(|| {
            Failure::new(format!("there is no server {name}; there are {}", known.join(", ")))
        })
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
    fn seat(&self) -> Seat {
        Seat {
            name: self.name.clone(),
            endpoint: format!("127.0.0.1:{}", self.client_port),
            peer_url: format!("http://127.0.0.1:{}", self.peer_port),
            is_running: false,
            ended: None,
        }
    }

    fn is_running(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_some_and(|process| matches!(process.child.try_wait(), Ok(None)))
    }

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
        let text = end_of(&self.log).unwrap_or_default();
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(line)
            .ok()
            .and_then(|line| line.get("msg")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| line.to_owned())
    }

    fn check_ports(&self, advice: &str) -> Result<(), Failure> {
        for (port, whose) in [(self.client_port, "clients"), (self.peer_port, "the other servers")]
        {
            TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
                let name = &self.name;
                let reason = match error.kind() {
                    io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
                    _ => error.to_string(),
                };
                Failure::new(format!(
                    "port {port} is needed by {name} for {whose}, and {reason}; {advice}"
                ))
            })?;
        }
        Ok(())
    }
}

impl Description {
    fn new(nodes: u16, base_port: u16) -> Self {
        let (joiners, removed) = (Vec::new(), Vec::new());
        Self { nodes, base_port, joiners, removed, highest: nodes, cache_bytes: None }
    }

    /// What the directory holds, if anything.
    fn read(data_dir: &Path) -> Result<Option<Self>, Failure> {
        let path = data_dir.join(DESCRIPTION);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| cannot_use(data_dir, &error))?,
        };
        let mut found: Self = serde_json::from_slice(&bytes).map_err(|error| {
            cannot_use(data_dir, &format_args!("{} is damaged: {error}", path.display()))
        })?;
        found.highest = found.highest.max(found.nodes);
        Ok(Some(found))
    }

    /// Refuses a directory that holds another cluster.
    fn check(&self, data_dir: &Path, nodes: u16, base_port: u16) -> Result<(), Failure> {
        if (self.nodes, self.base_port) == (nodes, base_port) {
            return Ok(());
        }
        let Self { nodes, base_port, .. } = self;
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

    /// The numbers of all servers.
    fn numbers(&self) -> Vec<u16> {
        let founders = (1..=self.nodes).filter(|number| !self.removed.contains(number));
        let mut numbers: Vec<u16> = founders.chain(self.joiners.iter().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn add(&mut self, number: u16) {
        if !self.joiners.contains(&number) {
            self.joiners.push(number);
        }
        self.removed.retain(|removed| *removed != number);
        self.highest = self.highest.max(number);
    }

    fn remove(&mut self, number: u16) {
        self.joiners.retain(|joiner| *joiner != number);
        if number <= self.nodes {
            self.removed.push(number);
        }
    }

    /// The ports of a server, for clients and for the others.
    fn ports(&self, number: u16) -> Result<(u16, u16), Failure> {
        let port = |extra: u16| self.base_port.checked_add(10 * (number - 1) + extra);
        port(0).zip(port(1)).ok_or_else(|| {
            Failure::usage(format!("--base-port {} leaves no room for all ports", self.base_port))
        })
    }

    /// Address and command of a server.
    fn plan(&self, data_dir: &Path, number: u16) -> Result<Server, Failure> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let joins = self.joiners.contains(&number) || self.nodes < number;
        // The founders tell each other by who they were at the birth; whoever joins asks those
        // that are there.
        let mut numbers = if joins { self.numbers() } else { (1..=self.nodes).collect() };
        if !numbers.contains(&number) {
            numbers.push(number);
        }
        let mut members = Vec::new();
        for other in numbers {
            members.push(format!("n{other}={}", url(self.ports(other)?.1)));
        }
        let (client_port, peer_port) = self.ports(number)?;
        let name = format!("n{number}");
        let mut command = vec![shown_program(), "serve".to_owned()];
        let mut flag = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
        flag("--name", name.clone());
        flag("--data-dir", data_dir.join(&name).display().to_string());
        flag("--listen-client-urls", url(client_port));
        flag("--listen-peer-urls", url(peer_port));
        flag("--initial-cluster", members.join(","));
        flag("--initial-cluster-token", format!("dev-{}", self.base_port));
        if joins {
            flag("--initial-cluster-state", "existing".to_owned());
        }
        if let Some(bytes) = self.cache_bytes {
            flag("--cache-bytes", bytes.to_string());
        }
        command.extend(SETTINGS.map(str::to_owned));
        let log = data_dir.join(format!("{name}.log"));
        Ok(Server { name, number, client_port, peer_port, command, log, process: None })
    }
}

/// The end of a file, which may be long: enough for a few lines.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(len.saturating_sub(16 << 10)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

fn cannot_use(data_dir: &Path, why: &dyn fmt::Display) -> Failure {
    Failure::new(format!("cannot use --data-dir {}: {why}", data_dir.display()))
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
