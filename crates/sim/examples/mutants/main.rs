//! Are the tests awake? Breaks one rule at a time in a copy of the sources, and asks the tests.
//!
//! ```text
//! cargo run -p kontiki-sim --example mutants [-- PART-OF-A-NAME]
//! ```
//!
//! Every mutant must make a test fail, of the core itself and of the simulator; the table says
//! which was first in each. One that survives both is an error. Takes about a minute a mutant.
#![expect(clippy::print_stdout, reason = "a program for people")]

mod list;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use list::{MUTANTS, Mutant};

/// What is copied: the crates that the tests need.
const CRATES: [&str; 5] = ["raft", "disk", "log", "kontiki", "sim"];

/// The tests that are asked: of the crates where a rule lives, and of the simulator.
const SUITES: [(&str, &[&str]); 2] = [
    ("core and log", &["-p", "kontiki-raft", "-p", "kontiki-log"]),
    ("simulator", &["-p", "kontiki-sim", "--test", "reads", "--test", "labs", "--test", "swarm"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let copy = std::env::temp_dir().join(format!("kontiki-mutants-{}", std::process::id()));
    let result = try_all(&root, &copy, &wanted);
    fs::remove_dir_all(&copy)?;
    let survivors = result?;
    if survivors.is_empty() {
        return Ok(());
    }
    Err(format!("no test has noticed: {}", survivors.join("; ")).into())
}

/// Tries every mutant whose name contains `wanted`, and returns the survivors.
fn try_all(root: &Path, copy: &Path, wanted: &str) -> Result<Vec<&'static str>, Box<dyn Error>> {
    copy_workspace(root, copy)?;
    for (suite, arguments) in SUITES {
        if let Verdict::Killed(test) = run_tests(copy, arguments)? {
            return Err(format!("{suite}: {test} fails without any mutant").into());
        }
    }
    println!("without a mutant all tests pass\n");
    let mut survivors = Vec::new();
    for mutant in MUTANTS.iter().filter(|mutant| mutant.name.contains(wanted)) {
        let path = copy.join(mutant.file);
        let original = fs::read_to_string(&path)?;
        fs::write(&path, mutate(mutant, &original)?)?;
        let mut is_killed = false;
        println!("{}", mutant.name);
        for (suite, arguments) in SUITES {
            match run_tests(copy, arguments)? {
                Verdict::Killed(test) => {
                    is_killed = true;
                    println!("    {suite:<14} {test}");
                }
                Verdict::Survived => println!("    {suite:<14} -"),
            }
        }
        if !is_killed {
            survivors.push(mutant.name);
        }
        fs::write(&path, original)?;
    }
    Ok(survivors)
}

/// Applies the patches. A text that is not there, or is there twice, is an error: the sources
/// have moved on, and the mutant must follow.
fn mutate(mutant: &Mutant, original: &str) -> Result<String, Box<dyn Error>> {
    let mut text = original.to_owned();
    for (from, to) in mutant.patches {
        let count = text.matches(from).count();
        if count != 1 {
            return Err(format!("{}: {count} times in {}: {from}", mutant.name, mutant.file).into());
        }
        text = text.replace(from, to);
    }
    Ok(text)
}

enum Verdict {
    /// By this test.
    Killed(String),
    Survived,
}

fn run_tests(copy: &Path, arguments: &[&str]) -> Result<Verdict, Box<dyn Error>> {
    let cargo = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", copy.join("target"))
            .env("RUST_BACKTRACE", "0")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .args(["test", "--offline", "--quiet"])
            .args(arguments)
            .args(extra);
        command
    };
    let built = cargo(&["--no-run"]).output()?;
    if !built.status.success() {
        return Err(format!("does not compile: {}", String::from_utf8_lossy(&built.stderr)).into());
    }
    let tested = cargo(&[]).output()?;
    if tested.status.success() {
        return Ok(Verdict::Survived);
    }
    let output = String::from_utf8_lossy(&tested.stdout);
    let test = output
        .lines()
        .find_map(|line| line.strip_prefix("---- ")?.split_whitespace().next())
        .unwrap_or("the process died");
    Ok(Verdict::Killed(test.to_owned()))
}

/// Copies the crates, and a manifest that knows only them.
fn copy_workspace(root: &Path, copy: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(copy)?;
    for name in CRATES {
        copy_dir(&root.join("crates").join(name), &copy.join("crates").join(name))?;
    }
    if root.join("docs").is_dir() {
        copy_dir(&root.join("docs"), &copy.join("docs"))?;
    }
    fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock"))?;
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let is_kept = |line: &&str| {
        let others = ["\"crates/", "exclude =", "default-members ="];
        let is_ours = |name: &str| line.contains(&format!("\"crates/{name}\""));
        !others.iter().any(|other| line.trim_start().starts_with(other))
            || (line.trim_start().starts_with("\"crates/") && CRATES.into_iter().any(is_ours))
    };
    let lines: Vec<&str> = manifest.lines().filter(is_kept).collect();
    fs::write(copy.join("Cargo.toml"), lines.join("\n"))?;
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_dir(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
