//! The client commands against our own servers, and the benchmark.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use crate::servers::{KONTIKI, Servers, alone, kontiki, run};

/// Runs a client command and returns what it prints.
fn ask(endpoint: &str, args: &[&str]) -> String {
    let output = kontiki(&[&["--endpoints", endpoint], args].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_client_commands_print_what_etcdctl_prints() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        let (first, second) = (&servers.endpoint(0)[..], &servers.endpoint(1)[..]);
        assert_eq!(ask(first, &["put", "hello", "world"]), "OK\n");
        assert_eq!(ask(second, &["put", "hello", "you", "--prev-kv"]), "OK\nhello\nworld\n");
        assert_eq!(ask(first, &["get", "hello"]), "hello\nyou\n");
        assert_eq!(ask(first, &["get", "h", "--prefix", "--print-value-only"]), "you\n");
        assert_eq!(ask(first, &["get", "h", "--prefix", "--count-only"]), "1\n");
        assert_eq!(ask(first, &["get", "nothing"]), "");
        let json = ask(first, &["get", "hello", "-w", "json"]);
        assert!(json.contains(r#""kvs":[{"key":"aGVsbG8=","create_revision":2,"#), "{json}");
        assert!(json.ends_with("\"version\":2,\"value\":\"eW91\"}],\"count\":1}\n"), "{json}");
        let fields = ask(first, &["get", "hello", "-w", "fields"]);
        assert!(fields.contains("\"Key\" : \"hello\"\n") && fields.ends_with("\"Count\" : 1\n"));
        assert_eq!(ask(second, &["del", "hello", "--prev-kv"]), "1\nhello\nyou\n");
        let compacted = ask(first, &["compact", "2"]);
        assert_eq!(compacted, "compacted revision 2\n");

        let status = ask(&servers.endpoints().join(","), &["status", "-w", "table"]);
        assert_eq!(status.lines().count(), 7, "{status}");
        assert_eq!(status.matches(" true |").count(), 1, "{status}");
        assert_eq!(ask(first, &["members"]).matches(", started, n").count(), 3);

        let refused = kontiki(&["--endpoints", first, "get", "k", "--rev", "1000"]);
        assert_eq!(refused.status.code(), Some(1));
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(told, "Error: etcdserver: mvcc: required revision is a future revision\n");
    });
}

#[test]
fn a_new_member_has_a_name_of_its_own() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        let endpoint = &servers.endpoint(0)[..];
        let url = "http://127.0.0.1:9";
        let before = ask(endpoint, &["members"]);
        for args in [
            &["members", "add", "n2", "--peer-urls", url][..],
            &["members", "replace", "n1", "--name", "n2", "--peer-urls", url],
        ] {
            let refused = kontiki(&[&["--endpoints", endpoint], args].concat());
            let told = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(refused.status.code(), Some(1), "{told}");
            assert!(told.starts_with("Error: n2 is the name of the member "), "{told}");
        }
        assert_eq!(ask(endpoint, &["members"]), before);
    });
}

#[test]
fn a_transaction_is_read_from_stdin() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        let endpoint = servers.endpoint(2);
        ask(&endpoint, &["put", "k", "a b"]);
        let mut child = Command::new(KONTIKI)
            .args(["txn", "--endpoints", &endpoint])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let text = "value(\"k\") = \"a b\"\n\nput k \"c d\"\nget k\n\ndel k\n\n";
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "SUCCESS\n\nOK\n\nk\nc d\n");
    });
}

#[test]
fn the_benchmark_counts_what_it_does() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        let endpoints = servers.endpoints().join(",");
        for work in ["put", "get", "mixed", "txn", "range"] {
            let line = ask(
                &endpoints,
                &[
                    "bench",
                    work,
                    "--total",
                    "200",
                    "--warmup",
                    "100ms",
                    "--keys",
                    "50",
                    "--limit",
                    "10",
                    "--clients",
                    "8",
                    "--json",
                ],
            );
            let result: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(result["work"], work);
            assert_eq!(result["operations"], 200, "{line}");
            assert_eq!(result["errors"], serde_json::json!({}), "{line}");
            assert!(result["latency_us"]["p50"].as_u64().unwrap() > 0, "{line}");
        }
    });
}
