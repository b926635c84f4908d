//! A wrong command line is refused in words that say what is wrong, with exit code 2.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
};

use crate::servers::{KONTIKI, directory, free_ports};

/// Runs a command that must be refused; returns what it says.
fn refused(args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new(KONTIKI)
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
    assert_eq!(output.stdout, b"", "{args:?}");
    told
}

#[test]
fn a_wrong_flag_is_named_with_the_reason() {
    for (args, told) in [
        (&["serve", "--bogus"][..], "--bogus"),
        (&["serve", "-bogus=1"], "--bogus"),
        (&["serve", "--heartbeat-interval", "soon"], "--heartbeat-interval"),
        (&["serve", "-election-timeout=300"], "--election-timeout: 300 ms is less than five"),
        (&["serve", "--name", "a", "--initial-cluster", "b=http://h:1"], "--initial-cluster"),
        (&["serve", "--listen-client-urls", "localhost:1"], "--listen-client-urls"),
        (&["serve", "--listen-peer-urls", "https://h:1"], "TLS"),
        (&["serve", "--log-level", "loud"], "--log-level"),
        (&["serve", "--threads", "0"], "--threads"),
        (&["dev", "--nodes", "9"], "--nodes"),
        (&["dev", "--ephemeral", "--data-dir", "x"], "--ephemeral"),
        (&["get"], "<KEY>"),
        (&["get", "a", "--prefix", "--from-key"], "--from-key"),
        (&["put", "a"], "put needs a value"),
        (&["compact", "x"], "<REVISION>"),
        (&["get", "a", "--endpoints", "https://h:1"], "`https` is not supported"),
        (&["bench", "put", "--key-size", "1"], "--key-size 1"),
        (&["bench", "put", "--clients", "0"], "--clients"),
        (&["labs", "no_such_lab"], "there is no scenario no_such_lab"),
        (&["members", "add", "n4"], "--peer-urls"),
        (&["members", "remove"], "<NAME|ID>"),
        (&["rebuild"], "--data-dir"),
        (&["serve", "--initial-cluster-state", "existing"], "names no other server"),
        (&["unknown"], "unknown"),
    ] {
        let text = refused(args, &[]);
        assert!(text.contains(told), "{args:?}: {text}");
    }
}

#[test]
fn a_flag_wins_over_our_variable_and_that_over_etcds() {
    let ours = ("KONTIKI_ELECTION_TIMEOUT", "200");
    let etcds = ("ETCD_ELECTION_TIMEOUT", "100");
    let told = refused(&["serve"], &[etcds]);
    assert!(told.contains("--election-timeout: 100 ms"), "{told}");
    let told = refused(&["serve"], &[etcds, ours]);
    assert!(told.contains("--election-timeout: 200 ms"), "{told}");
    let told = refused(&["serve", "-election-timeout", "300"], &[etcds, ours]);
    assert!(told.contains("--election-timeout: 300 ms"), "{told}");
    let told = refused(&["serve"], &[("ETCD_MAX_TXN_OPS", "many")]);
    assert!(told.contains("--max-txn-ops") && told.contains("ETCD_MAX_TXN_OPS"), "{told}");
}

#[test]
fn flags_of_etcd_that_are_not_known_are_all_named_with_advice() {
    let told = refused(&["serve", "-snapshot-count", "10", "--wal-dir=w", "--name", "n1"], &[]);
    let named = "--snapshot-count, --wal-dir: not known to this server, though etcd may have it";
    assert!(told.contains(named), "{told}");
    let told = refused(&["serve", "--peer-cert-file", "c", "--cors=*"], &[]);
    assert!(told.contains("--peer-cert-file: TLS is not supported yet"), "{told}");
    assert!(told.contains("--cors: not known to this server"), "{told}");
}

#[test]
fn a_variable_of_ours_that_is_not_known_is_told_of() {
    let output = Command::new(KONTIKI)
        .args(["serve", "--data-dir", "/dev/null/nowhere"])
        .env("KONTIKI_ELECTION_TIMOUT", "2000")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("KONTIKI_ELECTION_TIMOUT is a setting that this server"), "{told}");
}

#[test]
fn a_variable_of_etcd_that_asks_for_tls_stops_the_server() {
    let told = refused(&["serve"], &[("ETCD_PEER_AUTO_TLS", "true")]);
    assert!(told.contains("ETCD_PEER_AUTO_TLS: TLS is not supported yet"), "{told}");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_flag() {
    let dir = directory();
    for (flag, other) in [
        ("--listen-peer-urls", "--listen-client-urls"),
        ("--listen-client-urls", "--listen-peer-urls"),
    ] {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap();
        let output = Command::new(KONTIKI)
            .args(["serve", flag, &format!("http://{taken}")])
            .args([other, &format!("http://127.0.0.1:{}", free_ports(1)[0])])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        let told = log.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(told.contains(&format!("{flag}: cannot ")), "{told}");
        assert!(told.contains(&taken.to_string()) && told.contains("in use"), "{told}");
    }
}

#[test]
fn help_and_version_are_there() {
    for command in [
        "dev",
        "serve",
        "put",
        "get",
        "del",
        "txn",
        "compact",
        "status",
        "members",
        "move-leader",
        "alarm",
        "rebuild",
    ] {
        let output = Command::new(KONTIKI).args([command, "--help"]).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("Usage: kontiki "));
    }
    let output = Command::new(KONTIKI).arg("--help").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("kontiki dev "));
    let output = Command::new(KONTIKI).arg("--version").output().unwrap();
    let version = format!("kontiki {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), version);
}
