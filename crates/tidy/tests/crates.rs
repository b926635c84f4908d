//! Who may know whom, and what each crate may use (ARCHITECTURE.md, "Crates").

use std::fs;

use kontiki_tidy::{File, Manifest, files, manifests, root};

/// Of our own crates, each may know these, and no others. Arrows point downwards only.
const ARROWS: [(&str, &[&str]); 9] = [
    ("raft", &[]),
    ("disk", &[]),
    ("log", &["kontiki-raft", "kontiki-disk"]),
    ("kontiki", &["kontiki-raft", "kontiki-log", "kontiki-disk"]),
    ("store", &["kontiki-disk"]),
    ("server", &["kontiki", "kontiki-store"]),
    ("sim", &["kontiki-raft", "kontiki-disk", "kontiki-log", "kontiki", "kontiki-store"]),
    ("cli", &["kontiki-server", "kontiki-sim"]),
    ("tidy", &[]),
];

/// What each crate may take from outside. An entry here is a decision: the line in Cargo.toml
/// says why.
const OUTSIDE: [(&str, &[&str]); 9] = [
    ("raft", &["bytes", "crc32c"]),
    ("disk", &["crc32c", "thiserror"]),
    ("log", &["crc32c", "thiserror"]),
    (
        "kontiki",
        &["bytes", "crc32c", "getrandom", "metrics", "socket2", "thiserror", "tokio", "tracing"],
    ),
    ("store", &["bytes", "crc32c", "parking_lot", "thiserror"]),
    (
        "server",
        &[
            "bytes",
            "http",
            "http-body",
            "hyper",
            "hyper-util",
            "metrics",
            "prost",
            "prost-build",
            "prost-types",
            "protox",
            "sha1",
            "thiserror",
            "tokio",
            "tokio-stream",
            "tonic",
            "tonic-health",
            "tower-service",
            "tracing",
        ],
    ),
    ("sim", &[]),
    (
        "cli",
        &[
            "base64",
            "clap",
            "console",
            "etcd-client",
            "fastrand",
            "hdrhistogram",
            "http",
            "indicatif",
            "serde",
            "serde_json",
            "tempfile",
            "tokio",
            "tonic",
            "tonic-prost",
            "tracing",
            "tracing-subscriber",
        ],
    ),
    ("tidy", &[]),
];

fn is_ours(name: &str) -> bool {
    name == "kontiki" || name.starts_with("kontiki-")
}

/// What is linked into the crate or its build script. What only its tests use is not asked.
fn used(manifest: &Manifest) -> Vec<&str> {
    let mut names = manifest.dependencies("dependencies");
    names.extend(manifest.dependencies("build-dependencies"));
    names
}

fn row(
    table: &'static [(&'static str, &'static [&'static str])],
    dir: &str,
) -> &'static [&'static str] {
    let row = table.iter().find(|(name, _)| *name == dir);
    row.unwrap_or_else(|| panic!("crates/{dir} has no row in the table")).1
}

#[test]
fn arrows_point_downwards() {
    for manifest in manifests() {
        let allowed = row(&ARROWS, &manifest.dir);
        for name in used(&manifest).into_iter().filter(|name| is_ours(name)) {
            assert!(allowed.contains(&name), "{} must not know {name}", manifest.dir);
        }
    }
}

#[test]
fn nothing_comes_from_outside_unseen() {
    for manifest in manifests() {
        let allowed = row(&OUTSIDE, &manifest.dir);
        for name in used(&manifest).into_iter().filter(|name| !is_ours(name)) {
            assert!(allowed.contains(&name), "{} must not use {name}", manifest.dir);
        }
        for name in allowed {
            assert!(used(&manifest).contains(name), "{} does not use {name}", manifest.dir);
        }
    }
}

#[test]
fn the_protocol_has_at_most_three_dependencies() {
    let manifests = manifests();
    let raft = manifests.iter().find(|manifest| manifest.dir == "raft");
    let raft = raft.expect("there is a protocol");
    assert!(used(raft).len() <= 3, "kontiki-raft uses {:?}", used(raft));
}

#[test]
fn each_dependency_has_a_reason() {
    for manifest in manifests() {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let mut has_heading = false;
            for line in manifest.section(section) {
                // A comment speaks for the lines below it, up to the next empty one.
                has_heading = (has_heading && !line.is_empty()) || line.starts_with('#');
                let is_dependency = line.starts_with(|first: char| first.is_ascii_alphabetic());
                if is_dependency {
                    let is_explained = has_heading || line.contains(" # ");
                    assert!(is_explained, "{}: {line}", manifest.file.path);
                }
            }
        }
    }
}

#[test]
fn every_crate_takes_the_lints() {
    for manifest in manifests() {
        let lints = manifest.section("lints");
        assert!(
            lints.iter().any(|line| line == "workspace = true"),
            "{} gets no lint without `[lints] workspace = true`",
            manifest.file.path,
        );
    }
}

/// Clippy reads the nearest clippy.toml only: a crate's own must repeat the root's.
#[test]
fn a_crates_clippy_settings_contain_the_roots() {
    let common = File::read("clippy.toml");
    for manifest in manifests() {
        let path = format!("crates/{}/clippy.toml", manifest.dir);
        if !root().join(&path).is_file() {
            continue;
        }
        let own = File::read(&path);
        for line in common.text.lines().filter(|line| !line.trim().is_empty()) {
            assert!(own.text.lines().any(|found| found == line), "{path} lacks: {line}");
        }
    }
}

/// A feature flag is a second program that nobody tests.
#[test]
fn the_deterministic_crates_have_no_features() {
    for manifest in manifests() {
        let is_free = !["raft", "disk", "log", "store"].contains(&manifest.dir.as_str());
        assert!(is_free || !manifest.has_section("features"), "{} has features", manifest.dir);
    }
}

#[test]
fn each_member_has_a_purpose() {
    let workspace = File::read("Cargo.toml");
    for manifest in manifests() {
        let member = format!("\"crates/{}\",", manifest.dir);
        let line = workspace.text.lines().find(|line| line.trim().starts_with(&member));
        let line = line.unwrap_or_else(|| panic!("{member} is no member"));
        assert!(line.contains("# "), "{member} has no purpose beside it");
        assert!(
            manifest.file.text.contains("\ndescription = \""),
            "{} has no description",
            manifest.file.path,
        );
    }
}

/// Every file on disk is reached through the `Disk` trait, so that the simulator can stand in
/// for it: what stores data opens no file by itself, and nobody else syncs.
#[test]
fn only_the_disk_crate_touches_files() {
    let stores = ["crates/log/src/", "crates/store/src/", "crates/raft/src/"];
    let syncs = ["crates/disk/", "crates/log/", "crates/store/", "crates/sim/", "crates/tidy/"];
    for file in files("crates", "rs") {
        let code = File { text: file.without_tests().to_owned(), ..file.clone() };
        for (number, line) in code.code_lines() {
            let place = format!("{}:{number}", file.path);
            if stores.iter().any(|dir| file.path.starts_with(dir)) {
                for word in ["std::fs", "File::open", "OpenOptions"] {
                    assert!(!line.contains(word), "{place} uses {word}, not the disk");
                }
            }
            let is_test = file.path.contains("/tests/") || file.path.contains("/examples/");
            if !is_test && !syncs.iter().any(|dir| file.path.starts_with(dir)) {
                for call in [".sync_data(", ".sync_all(", "fdatasync(", "fsync("] {
                    assert!(!line.contains(call), "{place} calls {call}");
                }
            }
        }
    }
}

/// Only the server speaks protobuf, and only one of its files knows etcd's error texts.
#[test]
fn only_one_file_knows_etcds_error_texts() {
    let knowing: Vec<String> = files("crates", "rs")
        .into_iter()
        .filter(|file| file.path.contains("/src/") && !file.path.starts_with("crates/tidy/"))
        .filter(|file| file.without_tests().contains("\"etcdserver: "))
        .map(|file| file.path)
        .collect();
    assert!(knowing.len() <= 1, "etcd's error texts are in {knowing:?}");
}

#[test]
fn the_one_command_can_be_run() {
    let run = root().join(".ci/run");
    assert!(run.is_file(), ".ci/run is there");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(run).expect("it is there").permissions().mode();
        assert!(mode & 0o111 != 0, ".ci/run is executable");
    }
}
