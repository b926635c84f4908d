//! A byte of a log flips on the disk, and the server that finds it is repaired by its peers.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    chaos::{CLIENTS, pause},
    load::Load,
    servers::{Servers, alone, run, until},
};

/// Pitfall D7: a flipped bit in what was acknowledged is not taken for a torn write. The server
/// starts and says so; it has no vote until its peers have filled the hole; then it has one.
#[test]
fn a_flipped_byte_in_the_log_is_found_and_repaired() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        let load = Load::start(&servers, CLIENTS).await;
        pause(Duration::from_secs(1)).await;
        let victim = (servers.leader().await + 1) % 3;
        let (other, third) = ((victim + 1) % 3, (victim + 2) % 3);
        for index in [victim, other, third] {
            servers.kill(index);
        }
        let (damaged, at) = flip_a_byte(&servers.data_dir(victim));

        // Two of three, one of them damaged: it may have forgotten what it acknowledged, so
        // nobody may be elected with its vote.
        servers.start(victim);
        servers.start(other);
        until("a server that says that its log is damaged", async || {
            servers.log(victim).contains("the log is damaged: this node").then_some(())
        })
        .await;
        assert_damage_is_told(&servers.log(victim), &damaged, at);
        let mut client = servers.client(other).await;
        let read = client.get("k", None);
        let answer = tokio::time::timeout(Duration::from_secs(3), read).await;
        assert!(!matches!(answer, Ok(Ok(_))), "a damaged server has voted");

        servers.start(third);
        servers.until_ready(victim).await;
        // Repaired, it is as good as any: with one of the others it is a quorum.
        until("a server that is repaired", async || {
            servers.log(victim).contains("repaired").then_some(())
        })
        .await;
        servers.kill(other);
        let gap = load.resumed_after(Instant::now()).await;
        eprintln!("writes {gap:?} after the repaired server was needed");
        servers.start(other);
        servers.until_ready(other).await;
        load.finish().await;
    });
}

/// An error of the log names the file, and the record in it that holds the damaged byte.
fn assert_damage_is_told(log: &str, damaged: &Path, at: usize) {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let told = lines.find(|line: &serde_json::Value| {
        line["level"] == "error" && line["file"] == damaged.to_str().unwrap()
    });
    let told = told.unwrap_or_else(|| panic!("{} is not named:\n{log}", damaged.display()));
    let offset = usize::try_from(told["offset"].as_u64().unwrap()).unwrap();
    assert!(4096 <= offset && offset <= at && at - offset < 1 << 20, "byte {at}: {told}");
}

/// Damages the middle of what the newest segment of the log holds. Returns which and where.
fn flip_a_byte(data_dir: &Path) -> (PathBuf, usize) {
    let mut segments: Vec<PathBuf> = fs::read_dir(wal(data_dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    segments.sort();
    let path = segments.pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    let at = 4096 + (end - 4096) / 2;
    bytes[at] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    (path, at)
}

/// The directory of the log's segments.
fn wal(data_dir: &Path) -> PathBuf {
    let is_wal = |dir: &PathBuf| dir.file_name().is_some_and(|name| name == "wal");
    let mut open = vec![data_dir.to_owned()];
    while let Some(dir) = open.pop() {
        if is_wal(&dir) {
            return dir;
        }
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        open.extend(entries.filter(|path| path.is_dir()));
    }
    panic!("{} holds no log", data_dir.display());
}
