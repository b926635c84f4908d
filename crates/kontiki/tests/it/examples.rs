//! The examples, run as their users run them.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::common::free_port;

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
    let start = |id: usize| {
        let mut command = Command::new(example("counter"));
        command.args([id.to_string(), port.to_string()]).current_dir(dir.path());
        Some(Killed(command.stdout(Stdio::piped()).spawn().unwrap()))
    };
    let mut nodes = [start(1), start(2), start(3)];
    let mut last = 0;
    for victim in 0..3 {
        nodes[victim] = None;
        nodes[victim] = start(victim + 1);
        let witness = nodes[(victim + 1) % 3].as_mut().unwrap();
        let lines = BufReader::new(witness.0.stdout.as_mut().unwrap()).lines();
        let counts = lines.filter_map(|line| line.unwrap().split(' ').next()?.parse().ok());
        let next: u64 = counts.take(2).last().unwrap();
        assert!(last < next, "the count goes on: {last}, then {next}");
        last = next;
    }
}

#[test]
fn the_other_examples_end_well() {
    for name in ["three_nodes", "custom_log"] {
        let output = Command::new(example(name)).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        assert!(!output.stdout.is_empty(), "{name} says nothing");
    }
}
