//! The scripts: each file under `tests/scripts` tells one story about one rule.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p kontiki-raft --test scripts` writes what is observed into
//! them, to be read and judged before it is committed.

mod harness;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

const TOPICS: [&str; 14] = [
    "bereft",
    "damage",
    "election",
    "lease",
    "membership",
    "priority",
    "proposals",
    "purge",
    "reads",
    "replication",
    "snapshots",
    "storage",
    "timing",
    "transfer",
];

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .expect("the scripts are here")
        .map(|e| e.expect("readable").path())
        .collect();
    paths.sort();
    paths
}

/// Plays all scripts of a topic and names all that fail.
fn play(topic: &str) {
    let mut failures = Vec::new();
    for path in sorted(&scripts().join(topic)) {
        let name = path.strip_prefix(scripts()).expect("it is below").display().to_string();
        match catch_unwind(AssertUnwindSafe(|| harness::run(&path))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.push(format!("{name}: {error}")),
            Err(panic) => {
                let what = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic");
                failures.push(format!("{name}: {what}"));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
}

#[test]
fn every_topic_is_played() {
    let dirs: Vec<String> = sorted(&scripts())
        .iter()
        .map(|dir| dir.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(dirs, TOPICS);
}

#[test]
fn bereft() {
    play("bereft");
}

#[test]
fn damage() {
    play("damage");
}

#[test]
fn election() {
    play("election");
}

#[test]
fn lease() {
    play("lease");
}

#[test]
fn membership() {
    play("membership");
}

#[test]
fn priority() {
    play("priority");
}

#[test]
fn proposals() {
    play("proposals");
}

#[test]
fn purge() {
    play("purge");
}

#[test]
fn reads() {
    play("reads");
}

#[test]
fn replication() {
    play("replication");
}

#[test]
fn snapshots() {
    play("snapshots");
}

#[test]
fn storage() {
    play("storage");
}

#[test]
fn timing() {
    play("timing");
}

#[test]
fn transfer() {
    play("transfer");
}
