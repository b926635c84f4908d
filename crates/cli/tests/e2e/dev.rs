//! `kontiki dev`.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::servers::{KONTIKI, alone, directory, end_of, free_ports, kontiki, run, signal, until};

/// A development cluster; it goes with its lifeline when the test ends.
struct Dev {
    child: Child,
    output: PathBuf,
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what dev printed\n{}", self.printed());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Dev {
    fn start(output: &Path, args: &[&str]) -> Self {
        let file = File::create(output).unwrap();
        let child = Command::new(KONTIKI)
            .arg("dev")
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, output: output.to_path_buf() }
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    async fn until_printed(&self, text: &str) {
        until(text, async || self.printed().contains(text).then_some(())).await;
    }

    /// The process IDs of all servers, in order of their names.
    async fn pids(&self, count: usize) -> Vec<i32> {
        until("all servers have told their pids", async || {
            let printed = self.printed();
            let pids: Vec<i32> = (1..=count)
                .filter_map(|number| {
                    let name = format!("n{number} ");
                    let line = printed
                        .lines()
                        .find(|line| line.starts_with(&name) && line.contains(" pid "))?;
                    line.rsplit(' ').next()?.parse().ok()
                })
                .collect();
            (pids.len() == count).then_some(pids)
        })
        .await
    }
}

fn is_alive(pid: i32) -> bool {
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
}

/// Ports for `count` servers in a row as dev lays them out, free at this moment.
fn free_base_port(count: u16) -> u16 {
    loop {
        let base = free_ports(1)[0];
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (0..count).all(|index| is_free(base + 10 * index) && is_free(base + 10 * index + 1)) {
            return base;
        }
    }
}

#[test]
fn dev_serves_survives_its_leaders_death_and_goes_on_with_its_data() {
    let _alone = alone();
    run(async {
        let dir = directory();
        let data_dir = dir.path().join("data");
        let base = free_base_port(3);
        let base_port = base.to_string();
        let args = ["--data-dir", data_dir.to_str().unwrap(), "--base-port", &base_port];
        let endpoint = |index: u16| format!("127.0.0.1:{}", base + 10 * index);
        let all = format!("{},{},{}", endpoint(0), endpoint(1), endpoint(2));

        let mut dev = Dev::start(&dir.path().join("first"), &args);
        dev.until_printed("ready;").await;
        let pids = dev.pids(3).await;
        let put = kontiki(&["put", "hello", "world", "--endpoints", &endpoint(0)]);
        assert!(put.status.success(), "{put:?}");
        let get = kontiki(&["get", "hello", "--endpoints", &endpoint(1)]);
        assert_eq!(get.stdout, b"hello\nworld\n");

        // The leader that the printed line names.
        let printed = dev.printed();
        let line = printed.lines().find(|line| line.contains("kill -9")).unwrap();
        let pid: i32 = line.split_whitespace().nth(2).unwrap().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let killed = Instant::now();
        until("a write after the leader's death", async || {
            let put =
                kontiki(&["put", "a", "b", "--endpoints", &all, "--command-timeout", "500ms"]);
            put.status.success().then_some(())
        })
        .await;
        assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
        dev.until_printed("was killed by signal 9; to start it again:").await;
        // Nothing is started again by itself.
        assert!(!is_alive(pid));

        signal(&dev.child, Signal::TERM);
        let status = end_of(&mut dev.child, "dev stops").await;
        assert_eq!(status.code(), Some(0), "{}", dev.printed());
        assert!(pids.iter().all(|&pid| !is_alive(pid)));

        let mut again = Dev::start(&dir.path().join("second"), &args);
        again.until_printed("ready;").await;
        let get = kontiki(&["get", "hello", "--endpoints", &endpoint(2)]);
        assert_eq!(get.stdout, b"hello\nworld\n");
        signal(&again.child, Signal::INT);
        assert_eq!(end_of(&mut again.child, "dev stops").await.code(), Some(0));
    });
}

/// Runs a command that succeeds; returns what it prints.
fn done(args: &[&str]) -> String {
    let output = kontiki(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that fails; returns what it says.
fn refused(args: &[&str]) -> String {
    let output = kontiki(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A server that ends at once is not said to start.
fn assert_fails_to_start(name: &str, data_dir: &str) {
    let (dir, away) = (Path::new(data_dir).join(name), Path::new(data_dir).join("away"));
    fs::rename(&dir, &away).unwrap();
    fs::write(&dir, "a file where a directory should be").unwrap();
    let told = refused(&["dev", "start", name, "--data-dir", data_dir]);
    let begins = format!("Error: {name} ended with code 1: cannot use --data-dir");
    assert!(told.starts_with(&begins), "{told}");
    fs::remove_file(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
}

#[test]
fn servers_come_and_go_while_dev_runs() {
    let _alone = alone();
    run(async {
        let dir = directory();
        let data_dir = dir.path().join("data");
        let data_dir = data_dir.to_str().unwrap();
        let base = free_base_port(4);
        let base_port = base.to_string();
        let args = ["--data-dir", data_dir, "--base-port", &base_port];
        let order = |order: &[&str]| done(&[&["dev"], order, &["--data-dir", data_dir]].concat());
        let endpoint = |number: u16| format!("127.0.0.1:{}", base + 10 * (number - 1));
        let names = |at: u16| {
            let list = done(&["members", "--endpoints", &endpoint(at)]);
            let name = |line: &str| line.split(", ").nth(2).unwrap().to_owned();
            list.lines().map(name).collect::<Vec<_>>()
        };

        let mut dev = Dev::start(&dir.path().join("first"), &args);
        dev.until_printed("ready;").await;
        done(&["put", "hello", "world", "--endpoints", &endpoint(1)]);
        let told = refused(&["dev", "--data-dir", data_dir]);
        assert!(told.contains(&format!("a `kontiki dev` runs on {data_dir} already")), "{told}");
        assert!(order(&["add"]).ends_with("n4 has caught up, and votes\n"));
        assert_eq!(done(&["get", "hello", "--endpoints", &endpoint(4)]), "hello\nworld\n");
        assert!(order(&["replace", "n2"]).ends_with("n2 has caught up, and votes\n"));
        assert_eq!(names(4), ["n1", "n3", "n4", "n2"]);
        assert_eq!(done(&["get", "hello", "--endpoints", &endpoint(2)]), "hello\nworld\n");
        assert!(order(&["remove", "n1"]).starts_with("n1 is removed"));
        assert_eq!(names(3), ["n3", "n4", "n2"]);
        order(&["kill", "n4"]);
        let told = refused(&["dev", "stop", "n9", "--data-dir", data_dir]);
        assert!(told.contains("there is no server n9; there are n2, n3, n4"), "{told}");
        done(&["put", "without", "n4", "--endpoints", &endpoint(3)]);
        assert_fails_to_start("n4", data_dir);
        assert_eq!(order(&["start", "n4"]), "n4 serves\n");
        let moved = done(&["move-leader", "n2", "--endpoints", &endpoint(3)]);
        assert!(moved.starts_with("Leadership transferred from "), "{moved}");
        signal(&dev.child, Signal::TERM);
        assert_eq!(end_of(&mut dev.child, "dev stops").await.code(), Some(0), "{}", dev.printed());

        // Who has come and gone is remembered.
        let mut again = Dev::start(&dir.path().join("second"), &args);
        again.until_printed("ready;").await;
        assert_eq!(names(4), ["n3", "n4", "n2"]);
        assert_eq!(done(&["get", "without", "--endpoints", &endpoint(4)]), "without\nn4\n");
        signal(&again.child, Signal::INT);
        assert_eq!(end_of(&mut again.child, "dev stops").await.code(), Some(0));
    });
    let told = refused(&["dev", "add", "--data-dir", "/nowhere"]);
    assert!(told.contains("no `kontiki dev` runs on /nowhere"), "{told}");
}

#[test]
fn servers_do_not_outlive_a_dev_that_is_killed() {
    let _alone = alone();
    run(async {
        let dir = directory();
        let base_port = free_base_port(3).to_string();
        let args = ["--ephemeral", "--base-port", &base_port];
        let mut dev = Dev::start(&dir.path().join("output"), &args);
        let pids = dev.pids(3).await;
        dev.child.kill().unwrap();
        until("all servers are gone", async || {
            pids.iter().all(|&pid| !is_alive(pid)).then_some(())
        })
        .await;
    });
}

#[test]
fn dev_names_a_port_that_is_taken_before_it_starts_anything() {
    let base = free_base_port(3);
    let _taken = TcpListener::bind(("127.0.0.1", base + 11)).unwrap();
    let dir = directory();
    let data_dir = dir.path().join("data");
    let base_port = base.to_string();
    let args = ["dev", "--base-port", &base_port, "--data-dir", data_dir.to_str().unwrap()];
    let told = refused(&args);
    assert!(told.contains(&format!("port {} is needed by n2", base + 11)), "{told}");
    assert!(told.contains("choose others with --base-port"), "{told}");
    assert!(!data_dir.exists());

    // A cluster that is there has its ports for life.
    fs::create_dir(&data_dir).unwrap();
    let description = format!(r#"{{"nodes":3,"base_port":{base}}}"#);
    fs::write(data_dir.join("dev.json"), description).unwrap();
    let told = refused(&args);
    assert!(told.contains("make another cluster with --base-port and --data-dir"), "{told}");
}

#[test]
fn dev_does_not_mix_two_clusters() {
    let dir = directory();
    fs::write(dir.path().join("dev.json"), r#"{"nodes":5,"base_port":4000}"#).unwrap();
    let output = kontiki(&["dev", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("--nodes 5 --base-port 4000"), "{told}");
}
