//! The examples, run as their users run them.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use crate::common::{PATIENCE, free_port};

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    /// `kill -9`, and wait until it is gone with its locks and ports.
    fn drop(&mut self) {
        // It may be dead already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Cargo builds the examples along with the tests, next to them.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("examples").join(name)
}

#[test]
fn the_counter_survives_kill_9_of_any_node() {
    let dir = tempfile::tempdir().unwrap();
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let port = std::iter::repeat_with(free_port)
        .find(|port| (1..=3).all(|id| is_free(port + id)))
        .unwrap();
    let (counts, printed) = mpsc::channel();
    let start = |id: u64| {
        let mut command = Command::new(example("counter"));
        command.args([id.to_string(), port.to_string()]).current_dir(dir.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let counts = counts.clone();
        std::thread::spawn(move || {
            let numbers = lines.map_while(Result::ok).filter_map(|line| {
                line.split(' ').next()?.parse::<u64>().ok() // other lines tell why not
            });
            for count in numbers {
                counts.send((id, count)).ok(); // the test may be over
            }
        });
        Some(Killed(child))
    };
    let mut nodes = [start(1), start(2), start(3)];
    let mut last = 0;
    for victim in 1..=3u64 {
        let at = usize::try_from(victim - 1).unwrap();
        nodes[at] = None;
        while printed.try_recv().is_ok() {} // from before
        nodes[at] = start(victim);
        // It counts from where the others are, and so it has what was counted before.
        last = loop {
            let (id, count) = printed.recv_timeout(PATIENCE).unwrap();
            if id == victim && last < count {
                break count;
            }
        };
    }
    assert!(3 <= last);
}

#[test]
fn the_other_examples_end_well() {
    for name in ["three_nodes", "custom_log", "tour"] {
        let output = Command::new(example(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        assert!(!output.stdout.is_empty(), "{name} says nothing");
    }
}
