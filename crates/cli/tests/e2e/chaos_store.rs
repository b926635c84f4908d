//! Bytes of a store flip on the disk, and its server fetches the data anew.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    chaos::{CLIENTS, pause},
    load::Load,
    servers::{Servers, alone, kontiki, run, until},
};

/// The store is damaged while the server is down. It comes up by itself, says so, serves nothing
/// of what is damaged, and is as good as any when the others have given it all back.
#[test]
fn flipped_bytes_in_the_store_are_found_and_its_data_fetched_anew() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::unstarted();
        // So little that the log does not reach back to its beginning.
        for flag in ["--log-keep-bytes=0", "--log-bytes-max=1048576", "--cache-bytes=65536"] {
            servers.set_flag(flag);
        }
        servers.start_all().await;
        let mut client = servers.client(0).await;
        for number in 0..400 {
            client.put(format!("filler{number}"), vec![b'v'; 8000], None).await.unwrap();
        }
        let load = Load::start(&servers, CLIENTS).await;
        pause(Duration::from_secs(1)).await;
        let victim = (servers.leader().await + 1) % 3;
        let other = (victim + 1) % 3;
        servers.kill(victim);
        flip_bytes(&store(&servers.data_dir(victim)));

        servers.start(victim);
        until("an alarm that all hear of", async || {
            servers.log(victim).contains("moved aside").then_some(())
        })
        .await;
        servers.until_ready(victim).await;
        let endpoint = servers.endpoint(other);
        until("an alarm that is over", async || {
            let output = kontiki(&["alarm", "list", "--endpoints", &endpoint]);
            (output.status.success() && output.stdout.is_empty()).then_some(())
        })
        .await;
        assert!(servers.log(victim).contains("corrupt: false"), "it was raised before");
        // It has all of it, and takes part as before.
        servers.kill(other);
        pause(Duration::from_secs(1)).await;
        servers.start(other);
        servers.until_ready(other).await;
        load.finish().await;
        let aside = store(&servers.data_dir(victim)).with_extension("damaged-1");
        assert!(aside.is_dir(), "nothing is deleted");
    });
}

/// Damages the middle of what the largest file below `dir` holds: a byte here and there, for some
/// of it may be in use no more.
fn flip_bytes(dir: &Path) {
    let path = files(dir).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let written: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
    let middle = &written[written.len() / 4..written.len() / 4 * 3];
    for &at in middle.iter().step_by(middle.len() / 8) {
        bytes[at] ^= 0x10;
    }
    eprintln!("bytes of {} flip", path.display());
    fs::write(path, bytes).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, mut found): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    found.extend(dirs.iter().flat_map(|dir| files(dir)));
    found
}

fn store(data_dir: &Path) -> PathBuf {
    data_dir.join("member").join("store")
}
