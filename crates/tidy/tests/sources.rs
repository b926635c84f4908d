//! How the code reads.

use kontiki_tidy::{File, files, has_word, sources};

const FILE_LINES_MAX: usize = 700;

/// This crate names what it bans.
fn is_tidy(file: &File) -> bool {
    file.path.starts_with("crates/tidy/")
}

#[test]
fn no_file_is_too_long() {
    for file in sources().into_iter().chain(files("examples", "rs")) {
        let count = file.line_count();
        assert!(count <= FILE_LINES_MAX, "{} has {count} lines", file.path);
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for file in sources() {
        let first = file.text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{} does not begin with `//! `", file.path);
    }
}

/// Words that mean "not finished", "not looked at", or "hope".
#[test]
fn banned_words_do_not_occur() {
    let banned = [
        "#[ignore",
        "```ignore",
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        "FIXME",
        "XXX",
        "#[allow(",
        "#![allow(",
    ];
    for file in sources().into_iter().filter(|file| !is_tidy(file)) {
        for (number, line) in (1..).zip(file.text.lines()) {
            // What test binaries share is not used by each of them, so it cannot be expected.
            let is_shared = file.path.contains("/tests/") && line.contains("allow(dead_code");
            for word in banned.iter().filter(|_| !is_shared) {
                assert!(!line.contains(word), "{}:{number} contains {word}", file.path);
            }
            let is_open = has_word(line, "TODO") && !line.contains("TODO(#");
            assert!(!is_open, "{}:{number} has a TODO without an issue", file.path);
        }
    }
}

/// Tests of logic do not wait for time to pass: they say what time it is. Tests of real
/// processes poll with a deadline, and are not asked here.
#[test]
fn tests_of_logic_do_not_sleep() {
    let logic = ["raft", "disk", "log", "store", "sim"];
    for file in sources() {
        let is_measured = file.path.contains("/benches/");
        let is_logic = logic.iter().any(|dir| file.path.starts_with(&format!("crates/{dir}/")));
        if is_measured || !is_logic {
            continue;
        }
        for (number, line) in file.code_lines() {
            for call in ["thread::sleep", "time::sleep"] {
                assert!(!line.contains(call), "{}:{number} sleeps", file.path);
            }
        }
    }
}

/// The protocol and the whole node around it take time, chance and files as arguments.
#[test]
fn what_is_deterministic_has_no_world() {
    let banned = [
        "Instant",
        "SystemTime",
        "thread",
        "fs",
        "File",
        "TcpStream",
        "UdpSocket",
        "HashMap",
        "HashSet",
        "Mutex",
        "RwLock",
        "tokio",
        "async",
        "await",
        "unsafe",
    ];
    let node = ["crates/kontiki/src/replica.rs", "crates/kontiki/src/requests.rs"];
    for file in sources() {
        if !file.path.starts_with("crates/raft/src/") && !node.contains(&file.path.as_str()) {
            continue;
        }
        for (number, line) in file.code_lines() {
            for word in banned {
                assert!(!has_word(line, word), "{}:{number} knows {word}", file.path);
            }
        }
    }
}

/// What is written for people must not depend on the machine that it was written on.
#[test]
fn no_path_of_a_machine_is_left() {
    let pages = files("docs", "md")
        .into_iter()
        .chain(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(File::read));
    for file in pages.chain(sources()).filter(|file| !is_tidy(file)) {
        for (number, line) in (1..).zip(file.text.lines()) {
            for path in ["/home/", "/root/", "/work/", "/Users/"] {
                assert!(!line.contains(path), "{}:{number} names {path}", file.path);
            }
        }
    }
}
