//! Carries out the commands of a script.

use std::{error::Error, path::Path};

use goldenscript::{Context, Runner};
use kontiki_raft::{
    Bytes, Change, ChangeSet, Config, Entry, EntryId, Index, Input, Message, NodeId, Payload,
    ReadId, ReadMode, Role, StoreId, Term, Timestamp, Unavailable,
};

use super::{
    cluster::{Cluster, Result, image},
    command::{Command, Link, Name, Pace},
    disk::Image,
    print,
};

/// Plays the script at `path`. With `UPDATE_GOLDENFILES=1` what is observed is written into it.
///
/// # Errors
///
/// When the script cannot be played, or shows something else than it did.
#[expect(
    clippy::disallowed_methods,
    reason = "the test reads and writes scripts, the core does not"
)]
pub(crate) fn run(path: &Path) -> Result<()> {
    let script = std::fs::read_to_string(path)?;
    let mut stage = Stage { cluster: None };
    let observed = unescape(&goldenscript::generate(&mut stage, &escape(&script)?)?);
    if observed == script {
        return Ok(());
    }
    if std::env::var("UPDATE_GOLDENFILES").is_ok_and(|value| value == "1") {
        return Ok(std::fs::write(path, observed)?);
    }
    let at = script.lines().zip(observed.lines()).take_while(|(old, new)| old == new).count();
    let shown = |text: &str| text.lines().skip(at).take(8).collect::<Vec<_>>().join("\n    ");
    Err(format!(
        "line {} differs.\n  in the script:\n    {}\n  observed:\n    {}",
        at + 1,
        shown(&script),
        shown(&observed)
    )
    .into())
}

/// `n1->n2` and `n3,n4` read well and are not words to the parser, so they are put as words.
const ESCAPES: [(&str, &str); 2] = [("->", "@-@"), (",", "@.@")];

fn escape(script: &str) -> Result<String> {
    if ESCAPES.iter().any(|(_, word)| script.contains(word)) {
        return Err("a script must not contain @-@ or @.@".into());
    }
    Ok(ESCAPES.iter().fold(script.to_owned(), |text, (sign, word)| text.replace(sign, word)))
}

fn unescape(text: &str) -> String {
    ESCAPES.iter().fold(text.to_owned(), |text, (sign, word)| text.replace(word, sign))
}

/// A command whose words are signs again.
struct Line(Command);

impl TryFrom<&goldenscript::Command> for Line {
    type Error = Box<dyn Error>;

    fn try_from(raw: &goldenscript::Command) -> Result<Self> {
        let mut raw = raw.clone();
        for argument in &mut raw.args {
            match argument {
                goldenscript::Argument::Positional(text)
                | goldenscript::Argument::KeyValue(_, text) => *text = unescape(text),
                _ => {}
            }
        }
        Ok(Self(Command::try_from(&raw)?))
    }
}

struct Stage {
    cluster: Option<Cluster>,
}

impl Runner for Stage {
    type Command = Line;

    fn run(&mut self, line: &Line, context: &Context) -> Result<String> {
        if let Command::Cluster { .. } = line.0 {
            self.cluster = Some(start(&line.0)?);
        } else {
            let cluster = self.cluster.as_mut().ok_or("a script starts with `cluster`")?;
            cluster.is_silent = context.silent;
            perform(cluster, &line.0)?;
        }
        Ok(self.cluster.as_mut().map(Cluster::hear).unwrap_or_default())
    }
}

fn start(command: &Command) -> Result<Cluster> {
    let Command::Cluster {
        nodes,
        log,
        term,
        commit,
        entries_max,
        inflight_max,
        entry_bytes_max,
        uncommitted_bytes_max,
        unapplied_bytes_max,
        cache_bytes_max,
        pending_reads_max,
        keep_bytes,
        log_bytes_max,
        drift,
        purge_min,
        durable_machine,
        spare,
        priorities,
    } = command
    else {
        return Err("not a cluster".into());
    };
    let tune = |config: &mut Config| {
        let payload = Payload::Command(vec![0].into());
        let entry_len = Entry::new(EntryId::ZERO, payload).byte_len();
        let bounds = [
            (entries_max.map(|count| count * entry_len), &mut config.append_bytes_max),
            (*inflight_max, &mut config.inflight_messages_max),
            (*entry_bytes_max, &mut config.entry_bytes_max),
            (*uncommitted_bytes_max, &mut config.uncommitted_bytes_max),
            (*unapplied_bytes_max, &mut config.unapplied_bytes_max),
            (*cache_bytes_max, &mut config.log_cache_bytes_max),
            (*pending_reads_max, &mut config.pending_reads_max),
        ];
        let at = usize::try_from(config.id.get()).unwrap_or(usize::MAX) - 1;
        let priority = priorities.0.get(at).and_then(|&given| u8::try_from(given).ok());
        config.priority = priority.unwrap_or_default();
        config.purge_entries_min = purge_min.unwrap_or(config.purge_entries_min);
        config.clock_drift_ppm_max = *drift;
        // No script is as long as what a server keeps.
        config.log_keep_bytes = keep_bytes.unwrap_or_default();
        config.log_bytes_max = log_bytes_max.unwrap_or(config.log_bytes_max);
        for (given, bound) in bounds {
            *bound = given.unwrap_or(*bound);
        }
    };
    let spare = spare.unwrap_or_default();
    let mut cluster = Cluster::new((*nodes, spare), *durable_machine, tune);
    for id in (*nodes + 1..=*nodes + spare).map(NodeId) {
        cluster.start(id, Image::default())?;
    }
    for id in (1..=*nodes).map(NodeId) {
        cluster.start(id, image(log, *term, None, *commit))?;
    }
    Ok(cluster)
}

/// Everything but `cluster`.
fn perform(cluster: &mut Cluster, command: &Command) -> Result<()> {
    match command {
        Command::Cluster { .. } => Ok(()),
        Command::Node { name, log, term, vote, commit } => {
            let vote = vote.map(|vote| vote.0);
            let image = image(log, term.unwrap_or_default(), vote, *commit);
            cluster.start(name.0, image)
        }
        Command::Elect { name, term, votes } => {
            let votes = votes.as_ref().map(|votes| votes.0.as_slice());
            elect(cluster, name.0, term.map(Term), votes)
        }
        Command::Campaign(name) => cluster.step(name.0, Input::Campaign),
        Command::Timeout(name) => {
            let deadline = cluster.core(name.0)?.next_deadline().ok_or("it waits for nothing")?;
            cluster.now = cluster.now.max(deadline);
            cluster.step(name.0, Input::Timeout)
        }
        Command::Advance { time, names } => cluster.advance(time.0, &ids(names), false),
        Command::Wait(time) => {
            cluster.now = cluster.now + time.0;
            Ok(())
        }
        Command::Run(time) => cluster.advance(time.0, &[], true),
        Command::Propose { .. }
        | Command::Read { .. }
        | Command::Change { .. }
        | Command::Transfer { .. } => ask(cluster, command),
        Command::Persist { .. }
        | Command::FailWrite(_)
        | Command::Snapshot(_)
        | Command::Ship { .. }
        | Command::Give(_)
        | Command::LoseSnapshot(_) => store(cluster, command),
        Command::Applied(name) => {
            cluster.applied(name.0)?;
            cluster.settle(name.0)
        }
        Command::Unreachable(name, peer) => {
            cluster.step(name.0, Input::PeerUnreachable { id: peer.0 })
        }
        Command::Meet(name, peer, store) => {
            cluster.step(name.0, Input::PeerStore { id: peer.0, store: StoreId(*store) })
        }
        Command::Disk(..)
        | Command::Machine(..)
        | Command::FailReads { .. }
        | Command::Full(_)
        | Command::LoseState(_)
        | Command::Space(_)
        | Command::Damage { .. } => set(cluster, command),
        Command::Crash(names) => names.iter().try_for_each(|name| cluster.crash(name.0)),
        Command::Restart(names) => names.iter().try_for_each(|name| cluster.restart(name.0)),
        Command::Status(names) => {
            names_or_all(cluster, names).into_iter().try_for_each(|id| show_status(cluster, id))
        }
        Command::Progress(name) => show_progress(cluster, name.0),
        Command::Members(name) => show_members(cluster, name.0),
        Command::Lease(name) => show_lease(cluster, name.0),
        Command::Deliver(_)
        | Command::Drop(_)
        | Command::Dup(_)
        | Command::Reorder(_)
        | Command::Hold(_)
        | Command::Copy(_)
        | Command::Release(_)
        | Command::Cut(_)
        | Command::Isolate(_)
        | Command::Heal
        | Command::Messages(_) => move_messages(cluster, command),
    }
}

/// What becomes of writes and of snapshots.
fn store(cluster: &mut Cluster, command: &Command) -> Result<()> {
    match command {
        Command::Persist { name, count } => {
            cluster.persist(name.0, count.unwrap_or(usize::MAX))?;
            cluster.settle(name.0)
        }
        Command::FailWrite(name) => {
            let ticket = cluster.node(name.0)?.disk.fail().ok_or("no write is waiting")?;
            cluster.step(name.0, Input::WriteFailed(ticket))
        }
        Command::Snapshot(name) => cluster.snapshot(name.0),
        Command::Ship { link, unheard } => cluster.arrive(*link, !unheard),
        Command::Give(link) => cluster.give(*link),
        Command::LoseSnapshot(link) => cluster.lose_snapshot(*link),
        other => Err(format!("{other:?} stores nothing").into()),
    }
}

/// What clients and operators ask for.
fn ask(cluster: &mut Cluster, command: &Command) -> Result<()> {
    match command {
        Command::Propose { name, commands, bytes } => {
            let long = bytes.map(|bytes| vec![b'x'; bytes]);
            let commands = commands.iter().map(|command| command.clone().into_bytes());
            cluster.propose(name.0, commands.chain(long).collect())
        }
        Command::Read { name, lease } => {
            cluster.requests += 1;
            let id = ReadId(cluster.requests);
            let mode = if *lease { ReadMode::Lease } else { ReadMode::ReadIndex };
            cluster.step(name.0, Input::Read { id, mode })
        }
        Command::Change { name, .. } => cluster.change(name.0, change_set(command)?),
        Command::Transfer { name, to } => {
            let to = to.map(|to| to.0);
            cluster.step(name.0, Input::TransferLeadership { to })
        }
        other => Err(format!("{other:?} asks for nothing").into()),
    }
}

fn change_set(command: &Command) -> Result<ChangeSet> {
    let Command::Change { remove, demote, add, join, replace, by, promote, update, expect, .. } =
        command
    else {
        return Err("not a change".into());
    };
    let learner = |auto_promote: bool| {
        move |id: &NodeId| Change::AddLearner {
            address: id.to_string().into(),
            context: Bytes::new(),
            auto_promote,
        }
    };
    let replace = replace.zip(*by).map(|(old, new)| Change::Replace {
        old: old.0,
        address: new.0.to_string().into(),
        context: Bytes::new(),
    });
    let update = update.0.iter().map(|id| Change::Update {
        id: *id,
        address: format!("{id}-elsewhere").into(),
        context: Bytes::new(),
    });
    let changes = (remove.0.iter().copied().map(Change::Remove))
        .chain(demote.0.iter().copied().map(Change::Demote))
        .chain(add.0.iter().map(learner(false)))
        .chain(join.0.iter().map(learner(true)))
        .chain(replace)
        .chain(promote.0.iter().copied().map(Change::Promote))
        .chain(update)
        .collect();
    let expect = match expect.0.as_slice() {
        [] => None,
        &[index, term] => Some(EntryId::new(index, term)),
        other => return Err(format!("{other:?} is not an entry such as 3,1").into()),
    };
    Ok(ChangeSet { changes, expect })
}

/// The commands that touch the network only.
fn move_messages(cluster: &mut Cluster, command: &Command) -> Result<()> {
    match command {
        Command::Deliver(links) if links.is_empty() => cluster.deliver_all()?,
        Command::Deliver(links) => {
            for link in links {
                if !cluster.deliver(*link)? {
                    return Err(format!("nothing waits from {} to {}", link.from, link.to).into());
                }
            }
        }
        Command::Drop(links) => {
            let links = if links.is_empty() { &cluster.network.busy() } else { links };
            for link in links {
                cluster.network.take(*link);
            }
        }
        Command::Dup(links) => links.iter().for_each(|link| cluster.network.duplicate(*link)),
        Command::Reorder(links) => links.iter().for_each(|link| cluster.network.reverse(*link)),
        Command::Hold(links) => links.iter().for_each(|link| cluster.network.hold(*link)),
        Command::Copy(links) => links.iter().for_each(|link| cluster.network.copy(*link)),
        Command::Release(links) => links.iter().for_each(|link| cluster.network.release(*link)),
        Command::Cut(links) => links.iter().for_each(|link| cluster.network.cut(*link)),
        Command::Isolate(names) => {
            let all: Vec<NodeId> = cluster.nodes.keys().copied().collect();
            for name in names {
                for other in all.iter().filter(|other| **other != name.0) {
                    cluster.network.cut(Link { from: name.0, to: *other });
                    cluster.network.cut(Link { from: *other, to: name.0 });
                }
            }
        }
        Command::Heal => cluster.network.heal(),
        Command::Messages(links) => {
            let links = if links.is_empty() { &cluster.network.busy() } else { links };
            for link in links {
                let waiting: Vec<Message> =
                    cluster.network.waiting(*link).map(|p| p.message.clone()).collect();
                waiting.iter().for_each(|message| cluster.say_message(*link, message));
            }
        }
        other => return Err(format!("{other:?} moves no messages").into()),
    }
    Ok(())
}

/// The commands that change what surrounds a node.
fn set(cluster: &mut Cluster, command: &Command) -> Result<()> {
    match command {
        Command::Disk(name, pace) => {
            cluster.node(name.0)?.disk_pace = *pace;
            if *pace == Pace::Fast { cluster.settle(name.0) } else { Ok(()) }
        }
        Command::Machine(name, pace) => {
            cluster.node(name.0)?.machine_pace = *pace;
            if *pace == Pace::Fast { cluster.settle(name.0) } else { Ok(()) }
        }
        Command::FailReads { name, damaged } => {
            let why = if *damaged { Unavailable::Damaged } else { Unavailable::Retry };
            cluster.node(name.0)?.cannot_read_back = Some(why);
            Ok(())
        }
        Command::Full(name) => cluster.step(name.0, Input::StorageSpace { is_full: true }),
        Command::Space(name) => cluster.step(name.0, Input::StorageSpace { is_full: false }),
        Command::Damage { name, from, term } => {
            if cluster.core(name.0).is_ok() {
                return Err(format!("{} is not down", name.0).into());
            }
            cluster.node(name.0)?.disk.damage(Index(*from), term.map(Term));
            Ok(())
        }
        Command::LoseState(name) => {
            if cluster.core(name.0).is_ok() {
                return Err(format!("{} is not down", name.0).into());
            }
            let node = cluster.node(name.0)?;
            node.applied = Index::ZERO;
            node.disk.snapshots.clear();
            Ok(())
        }
        other => Err(format!("{other:?} sets nothing").into()),
    }
}

/// Makes a node leader by messages about votes alone.
fn elect(
    cluster: &mut Cluster,
    id: NodeId,
    term: Option<Term>,
    votes: Option<&[NodeId]>,
) -> Result<()> {
    // Longer than any promise and any randomized timeout.
    cluster.now = cluster.now + std::time::Duration::from_millis(2_001);
    let others: Vec<NodeId> = cluster.nodes.keys().copied().filter(|other| *other != id).collect();
    // A candidate may have to learn a higher term first, from a refusal.
    for _ in 0..4 {
        cluster.step(id, Input::Campaign)?;
        for _ in 0..4 {
            for other in &others {
                let is_voter = votes.is_none_or(|votes| votes.contains(other));
                let (there, back) = (Link { from: id, to: *other }, Link { from: *other, to: id });
                for link in [there, back] {
                    for parcel in cluster.network.take_votes(link) {
                        if is_voter {
                            cluster.deliver_one(link, parcel)?;
                        }
                    }
                }
            }
        }
        if cluster.role(id)? == Role::Leader {
            let reached = cluster.core(id)?.status().term();
            return match term {
                Some(term) if term != reached => {
                    Err(format!("{id} leads term {reached}, not {term}").into())
                }
                Some(_) | None => Ok(()),
            };
        }
    }
    Err(format!("{id} does not win").into())
}

fn show_status(cluster: &mut Cluster, id: NodeId) -> Result<()> {
    let node = cluster.node(id)?;
    let log = node.show_log();
    let Some(core) = &node.core else {
        cluster.say(&format!("{id} down  {log}"));
        return Ok(());
    };
    let status = core.status();
    let mut line = format!(
        "{id}/{} {:<9} {log}  commit={}",
        status.term(),
        status.soft_state.role.to_string(),
        status.commit_index
    );
    if status.soft_state.role == Role::Leader && !status.progress.is_empty() {
        let matches: Vec<String> =
            status.progress.iter().map(|p| format!("{}={}", p.id, p.match_index)).collect();
        line = format!("{line}  match: {}", matches.join(" "));
    }
    if let Some(damaged) = &status.damaged {
        line = format!("{line}  damaged {}..={}", damaged.start(), damaged.end());
    }
    if let Some(needed) = status.needs_snapshot {
        line = format!("{line}  needs snapshot {needed}");
    }
    cluster.say(&line);
    Ok(())
}

fn show_members(cluster: &mut Cluster, id: NodeId) -> Result<()> {
    let status = cluster.core(id)?.status();
    let line = format!("{} {}", status.membership_at, print::membership(status.membership));
    let stores = status
        .membership
        .members
        .iter()
        .filter_map(|member| member.store.map(|store| format!(" {}={store}", member.id)));
    let stores: String = stores.collect();
    cluster.say(&if stores.is_empty() { line } else { format!("{line} stores:{stores}") });
    Ok(())
}

fn show_progress(cluster: &mut Cluster, id: NodeId) -> Result<()> {
    let status = cluster.core(id)?.status();
    let lines: Vec<String> = status
        .progress
        .iter()
        .map(|p| {
            let state = format!("{:?}", p.state).to_lowercase();
            format!("{}: {state} match={} next={}", p.id, p.match_index, p.next_index)
        })
        .collect();
    lines.iter().for_each(|line| cluster.say(line));
    Ok(())
}

fn show_lease(cluster: &mut Cluster, id: NodeId) -> Result<()> {
    let until = cluster.core(id)?.status().lease_until;
    let line = match until {
        Some(Timestamp(u64::MAX)) => format!("{id} has a lease for ever"),
        Some(until) => format!("{id} has a lease for {:?}", until - cluster.now),
        None => format!("{id} has no lease"),
    };
    cluster.say(&line);
    Ok(())
}

fn ids(names: &[Name]) -> Vec<NodeId> {
    names.iter().map(|name| name.0).collect()
}

fn names_or_all(cluster: &Cluster, names: &[Name]) -> Vec<NodeId> {
    if names.is_empty() { cluster.nodes.keys().copied().collect() } else { ids(names) }
}
