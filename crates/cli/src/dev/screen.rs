//! What `kontiki dev` prints: on a terminal a table that stays current below what was said, and
//! otherwise one line for each change.

use std::{collections::BTreeMap, fmt::Write as _, io, path::Path};

use console::Term;

use super::{
    cluster::{Cluster, shown_program},
    watch::{State, View},
};

pub(super) struct Screen {
    stdout: Term,
    is_terminal: bool,
    /// What stands at the end of the terminal now.
    drawn: String,
    /// By the name of the server.
    last: BTreeMap<String, View>,
    /// What `kontiki dev add` and its like need to find this cluster.
    data_dir_flag: String,
    has_invited: bool,
}

impl Screen {
    /// `data_dir` is shown in commands, if it is not the default.
    pub(super) fn new(data_dir: Option<&Path>) -> Self {
        let stdout = Term::stdout();
        let is_terminal = stdout.features().is_attended();
        let flag = |dir: &Path| format!(" --data-dir {}", quoted(&[dir.display().to_string()]));
        Self {
            stdout,
            is_terminal,
            drawn: String::new(),
            last: BTreeMap::new(),
            data_dir_flag: data_dir.map(flag).unwrap_or_default(),
            has_invited: false,
        }
    }

    /// Prints text that stays.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        let drawn = std::mem::take(&mut self.drawn);
        self.erase(&drawn)?;
        self.stdout.write_line(text)?;
        self.draw(drawn)
    }

    /// Shows the servers as they are.
    pub(super) fn show(&mut self, cluster: &Cluster, views: &[View]) -> io::Result<()> {
        for index in 0..views.len() {
            if let Some(text) = self.news(cluster, views, index) {
                self.say(&text)?;
            }
        }
        let names = cluster.servers.iter().map(|server| server.name.clone());
        self.last = names.zip(views.iter().cloned()).collect();
        if !self.has_invited && views.iter().any(|view| view.state == State::Leader) {
            self.has_invited = true;
            let text = invitation(cluster, views, &self.data_dir_flag);
            self.say(&text)?;
        }
        if self.is_terminal {
            let table = table(cluster, views);
            if table != self.drawn {
                let drawn = std::mem::take(&mut self.drawn);
                self.erase(&drawn)?;
                self.draw(table)?;
            }
        }
        Ok(())
    }

    /// What there is to say about a server that has changed. A terminal shows most of it in
    /// the table; how to start a dead server again is said there too.
    fn news(&self, cluster: &Cluster, views: &[View], index: usize) -> Option<String> {
        let (server, view) = (cluster.servers.get(index)?, views.get(index)?);
        let before = self.last.get(&server.name).cloned().unwrap_or_default();
        if let (Some(status), None) = (view.ended, before.ended) {
            let obituary = server.obituary(status);
            return Some(format!("{obituary}; to start it again:\n  {}", quoted(&server.command)));
        }
        let is_same = (view.state, view.term) == (before.state, before.term);
        if self.is_terminal || is_same {
            return None;
        }
        let address = cluster.endpoint(index);
        let mut text = format!("{} {address} {}", server.name, view.state.name());
        if matches!(view.state, State::Leader | State::Follower | State::Learner | State::NoLeader)
        {
            write!(text, " term {}", view.term).ok()?;
        }
        if view.pid != 0 && view.state != State::Dead {
            write!(text, " pid {}", view.pid).ok()?;
        }
        Some(text)
    }

    fn draw(&mut self, text: String) -> io::Result<()> {
        if self.is_terminal && !text.is_empty() {
            self.stdout.write_str(&text)?;
            self.stdout.flush()?;
        }
        self.drawn = text;
        Ok(())
    }

    fn erase(&self, drawn: &str) -> io::Result<()> {
        if self.is_terminal && !drawn.is_empty() {
            self.stdout.clear_last_lines(drawn.lines().count())?;
        }
        Ok(())
    }
}

/// No line is longer than the narrowest usual terminal: a wrapped one could not be erased.
fn table(cluster: &Cluster, views: &[View]) -> String {
    let mut text = format!(
        "\n {:<5} {:<16} {:<10} {:>6} {:>10} {:>8}\n",
        "NAME", "CLIENT ADDRESS", "ROLE", "TERM", "APPLIED", "PID"
    );
    for (index, (server, view)) in cluster.servers.iter().zip(views).enumerate() {
        let pid = match (view.state, view.pid) {
            (State::Dead, _) => String::new(),
            (_, 0) => "by hand".to_owned(),
            (_, pid) => pid.to_string(),
        };
        let (name, address) = (&server.name, cluster.endpoint(index));
        let role = console::pad_str(view.state.name(), 10, console::Alignment::Left, None);
        let role = match view.state {
            State::Leader => console::style(role).green().to_string(),
            State::Dead | State::Silent | State::NoLeader => console::style(role).red().to_string(),
            State::Starting | State::Follower | State::Learner => role.into_owned(),
        };
        let (term, applied) = (view.term, view.applied);
        text.push_str(&format!(
            " {name:<5} {address:<16} {role} {term:>6} {applied:>10} {pid:>8}\n"
        ));
    }
    text
}

/// The lines to type next.
fn invitation(cluster: &Cluster, views: &[View], data_dir_flag: &str) -> String {
    let program = shown_program();
    let leader = views.iter().position(|view| view.state == State::Leader).unwrap_or_default();
    let pid = views.get(leader).map_or(0, |view| view.pid);
    let name = cluster.servers.get(leader).map_or("", |server| server.name.as_str());
    let (first, second) = (cluster.endpoint(0), cluster.endpoint(1 % views.len().max(1)));
    let mut text = format!(
        "\nready; in another terminal:\n  \
         etcdctl --endpoints {first} put hello world\n  \
         etcdctl --endpoints {second} get hello\n  \
         {program} put hello world --endpoints {first}\n  \
         {program} get hello --endpoints {second}\n"
    );
    if 2 < views.len() {
        text.push_str(&format!(
            "  kill -9 {pid}    # {name} leads; the others answer again within 2 s\n"
        ));
    }
    text.push_str(&format!(
        "  {program} dev add{data_dir_flag}    # or: dev replace n2, remove n2, kill n1, start n1\n"
    ));
    text.push_str("Ctrl-C stops all servers.");
    text
}

/// A command line for a shell.
fn quoted(command: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let words = command.iter().map(|word| {
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let command = ["kontiki", "--data-dir", "my data/n1", "it's", "a=b,c=d"].map(str::to_owned);
        assert_eq!(quoted(&command), r"kontiki --data-dir 'my data/n1' 'it'\''s' a=b,c=d");
    }
}
