//! What the pages say about the tree is so.

use std::collections::BTreeMap;

use kontiki_tidy::{File, files, has_word, quoted, root, sources};

/// All sources and manifests as one text, to look names up in.
fn tree() -> String {
    let mut all = String::new();
    for file in sources().into_iter().chain(files("crates", "toml")).chain(files("crates", "proto"))
    {
        all.push_str(&file.text);
    }
    all.push_str(&File::read("Cargo.toml").text);
    all
}

/// The rows of the first table below a heading, each as its cells.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let start = page.find(heading).unwrap_or_else(|| panic!("no heading {heading}"));
    page[start + heading.len()..]
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// `file.rs::name` → does that file of the protocol, or of its tests, have a function, a type
/// or a field of that name?
fn assert_place_exists(place: &str) {
    let (path, name) = place.split_once("::").unwrap_or((place, ""));
    let found = ["crates/raft/src", "crates/raft/tests", "crates/sim", "crates/kontiki"]
        .iter()
        .flat_map(|dir| files(dir, "rs"))
        .filter(|file| file.path.ends_with(&format!("/{path}")))
        .any(|file| name.is_empty() || has_word(&file.text, name));
    assert!(found, "docs/protocol.md names {place}, which is not there");
}

#[test]
fn every_name_in_the_map_of_the_protocol_exists() {
    let page = File::read("docs/protocol.md");
    for heading in [
        "## Elections",
        "## Replication",
        "## Durability",
        "## Reads",
        "## Clients",
        "## Transfer",
        "## Membership",
        "## Priority",
        "## Snapshots",
        "## Log compaction",
        "## Damaged logs",
        "## Lease reads",
        "## A full disk",
    ] {
        let rows = table(&page.text, heading);
        assert!(!rows.is_empty(), "{heading} has no rows");
        for row in rows {
            let [rule, places, assertions, scripts] = row.as_slice() else {
                panic!("{heading}: a row has four cells: {row:?}");
            };
            for place in quoted(places).iter().chain(&quoted(assertions)) {
                assert_place_exists(place);
            }
            let scripts = quoted(scripts);
            assert!(!scripts.is_empty(), "{rule}: no script tells it");
            for script in scripts {
                let path = format!("crates/raft/tests/scripts/{script}.txt");
                assert!(root().join(&path).is_file(), "{rule}: {path} is not there");
            }
        }
    }
}

/// A script that no rule points to is a story that nobody finds.
#[test]
fn every_script_of_the_protocol_is_on_the_map() {
    let page = File::read("docs/protocol.md");
    for script in files("crates/raft/tests/scripts", "txt") {
        let name = script.path.trim_start_matches("crates/raft/tests/scripts/");
        let name = name.trim_end_matches(".txt");
        assert!(page.text.contains(&format!("`{name}`")), "docs/protocol.md lacks {name}");
    }
}

/// Where we differ from the paper, the code says `Deviation:` and the page lists it.
#[test]
fn deviations_are_listed() {
    let page = File::read("docs/protocol.md");
    let listed: Vec<String> = table(&page.text, "## Deviations")
        .into_iter()
        .flat_map(|row| row.first().map(|cell| quoted(cell)).unwrap_or_default())
        .collect();
    let mut commented: Vec<String> = Vec::new();
    for file in files("crates/raft/src", "rs") {
        let count = file.text.matches("Deviation:").count();
        let name = file.path.trim_start_matches("crates/raft/src/").to_owned();
        commented.extend(std::iter::repeat_n(name, count));
    }
    let mut in_page: Vec<String> = listed
        .iter()
        .map(|place| place.split("::").next().unwrap_or_default().to_owned())
        .collect();
    in_page.sort();
    commented.sort();
    assert_eq!(in_page, commented, "docs/protocol.md and `Deviation:` comments differ");
    listed.iter().for_each(|place| assert_place_exists(place));
}

/// Paths must exist; names of types and functions must occur in the code.
#[test]
fn every_name_in_the_architecture_exists() {
    let tree = tree();
    for name in quoted(&File::read("ARCHITECTURE.md").text) {
        if name.contains('/') && !name.contains(' ') {
            let path = name.trim_end_matches('/');
            let is_there = root().join(path).exists() || root().join("crates").join(path).exists();
            assert!(is_there, "ARCHITECTURE.md names {name}, which is not there");
            continue;
        }
        let is_name = name.chars().all(|c| c.is_alphanumeric() || "_:()".contains(c));
        if is_name && name.contains(|c: char| c.is_alphabetic()) {
            for part in name.split("::") {
                let part = part.trim_end_matches("()");
                assert!(has_word(&tree, part), "ARCHITECTURE.md names {name}: no {part}");
            }
        }
    }
}

#[test]
fn a_script_is_one_story_and_begins_with_its_claim() {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let scripts =
        files("crates", "txt").into_iter().filter(|file| file.path.contains("/tests/scripts/"));
    for script in scripts {
        let path = &script.path;
        // A session with the server is a transcript, and may begin with its first request.
        if path.starts_with("crates/raft/") {
            let first = script.text.lines().next().unwrap_or_default();
            let is_claim = first.starts_with("# ") && 20 < first.len();
            assert!(is_claim, "{path} does not begin with a claim");
            assert!(script.line_count() < 80, "{path} has {} lines", script.line_count());
        }
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        if let Some(other) = names.insert(name, path.clone()) {
            panic!("{path} and {other} have the same name");
        }
    }
    assert!(!names.is_empty(), "there are scripts");
}

/// The first Rust that a newcomer reads is run by the build.
#[test]
fn the_counter_of_the_readme_is_the_example() {
    let readme = File::read("README.md");
    let block = readme.text.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    let block = block.expect("README.md shows the counter");
    let example = ["examples/counter.rs", "crates/kontiki/examples/counter.rs"]
        .iter()
        .find(|path| root().join(path).is_file())
        .map(|path| File::read(path));
    let example = example.expect("the counter is an example");
    let code: Vec<&str> = example
        .text
        .lines()
        .skip_while(|line| line.starts_with("//") || line.starts_with("#!") || line.is_empty())
        .collect();
    assert_eq!(block.trim(), code.join("\n").trim(), "README.md and {} differ", example.path);
    assert!(example.line_count() < 50, "the counter has {} lines", example.line_count());
}

/// The oldest Rust that will do is stated in Cargo.toml, and repeated in prose.
#[test]
fn the_minimum_rust_version_is_the_same_everywhere() {
    let manifest = File::read("Cargo.toml");
    let line = manifest.text.lines().find(|line| line.starts_with("rust-version"));
    let version = line.and_then(|line| line.split('"').nth(1)).expect("it is stated");
    let readme = File::read("README.md");
    assert!(readme.text.contains(&format!("Rust {version}")), "README.md says Rust {version}");
}

/// The lines of tests and scripts that name a pitfall.
fn lines_about_pitfalls() -> String {
    let mut told = String::new();
    for file in scripts().chain(sources()) {
        let is_test = file.path.contains("/tests/") && !file.path.starts_with("crates/tidy/");
        let text =
            if is_test { file.text.as_str() } else { &file.text[file.without_tests().len()..] };
        for line in text.lines().filter(|line| line.contains("itfall")) {
            told.push_str(line);
            told.push('\n');
        }
    }
    told
}

fn scripts() -> impl Iterator<Item = File> {
    files("crates", "txt").into_iter().filter(|file| file.path.contains("/tests/scripts/"))
}

/// The bugs of other Raft systems: each has a row, and each has a test that names it, so that
/// `grep -rn "Pitfall B2" crates` finds the proof.
#[test]
fn every_pitfall_has_a_row_and_a_test() {
    let rows = table(&File::read("docs/testing.md").text, "## Pitfalls");
    let listed: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let all: Vec<String> = [("B", 18), ("R", 12), ("M", 20), ("D", 15)]
        .iter()
        .flat_map(|&(kind, count)| (1..=count).map(move |number| format!("{kind}{number}")))
        .collect();
    assert_eq!(listed, all, "docs/testing.md lists the pitfalls, each once and in order");

    let told = lines_about_pitfalls();
    let missing: Vec<&str> =
        listed.into_iter().filter(|pitfall| !has_word(&told, pitfall)).collect();
    assert!(missing.is_empty(), "no test names the pitfalls {missing:?}");
}

/// What a row says to show it is there: a script, or a test.
#[test]
fn every_test_that_a_pitfall_names_exists() {
    let tree = tree();
    let scripts: String = scripts().map(|script| script.path + "\n").collect();
    for row in table(&File::read("docs/testing.md").text, "## Pitfalls") {
        let [pitfall, _, tests] = row.as_slice() else { panic!("three cells: {row:?}") };
        let names = quoted(tests);
        assert!(!names.is_empty(), "{pitfall} names no test");
        for name in names {
            let is_there = if name.contains('/') {
                scripts.contains(&format!("/tests/scripts/{name}.txt"))
            } else {
                has_word(&tree, &format!("fn {name}"))
            };
            assert!(is_there, "{pitfall} names {name}, which is not there");
        }
    }
}
