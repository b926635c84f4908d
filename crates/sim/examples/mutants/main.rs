//! Are the tests awake? Breaks one rule at a time in a copy of the sources, and asks the tests.
//!
//! ```text
//! cargo run --release -p kontiki-sim --example mutants -- [PART-OF-A-NAME-OR-FILE] [--seeds N] [--write-docs]
//! ```
//!
//! The tests of the crate where the rule lives are asked first, then random worlds until one
//! fails, at most as many as `--seeds` says (300). A mutant that survives both is an error. The
//! worlds run a small state machine in the place of the store, so they are not asked for its
//! mutants: `crates/store` tries those alone.
//! `--write-docs` writes the table in `docs/testing.md`; rows of mutants that were not tried
//! stay. The copy and what is built of it stay in the target directory, for the next time.
#![expect(clippy::print_stdout, reason = "a program for people")]

mod docs;
mod hunt;
#[path = "list.rs"]
mod list;
mod workspace;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use list::Mutant;
use workspace::{Verdict, Workspace};

/// What is asked for on the command line.
#[derive(Debug)]
struct Options {
    part: String,
    seeds: u64,
    writes_docs: bool,
    /// Set by this program when it runs itself in the copy.
    hunts: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options =
            Self { part: String::new(), seeds: 300, writes_docs: false, hunts: false };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--write-docs" => options.writes_docs = true,
                "--hunt" => options.hunts = true,
                "--seeds" => {
                    let number = arguments.next().and_then(|text| text.parse().ok());
                    options.seeds = number.ok_or("--seeds wants a number")?;
                }
                flag if flag.starts_with('-') => return Err(format!("unknown flag {flag}")),
                part => part.clone_into(&mut options.part),
            }
        }
        Ok(options)
    }
}

/// What became of a mutant.
#[derive(Debug)]
pub(crate) struct Tried {
    mutant: &'static Mutant,
    /// The test that failed first.
    test: Option<String>,
    /// The seed of the world that failed first, and what was broken in it.
    seed: Option<(u64, String)>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    if options.hunts {
        return Ok(hunt::run(options.seeds));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let workspace = Workspace::copy(&root, &target_dir(&root).join("mutants"))?;
    let is_chosen = |mutant: &&Mutant| {
        [mutant.name, mutant.file].iter().any(|text| text.contains(&options.part))
    };
    let chosen: Vec<_> = list::all().filter(is_chosen).collect();
    for suite in Suite::ALL {
        let is_needed = |mutant: &&Mutant| Suite::of(mutant.file).contains(&suite);
        if !chosen.iter().any(is_needed) {
            continue;
        }
        if let Verdict::Killed(test) = workspace.test(suite.arguments())? {
            return Err(format!("{test} fails without any mutant").into());
        }
    }
    if 0 < options.seeds
        && chosen.iter().any(|mutant| are_worlds_asked(mutant))
        && let Some((seed, what)) = workspace.hunt(options.seeds)?
    {
        return Err(format!("the world of seed {seed} fails without any mutant: {what}").into());
    }
    println!("without a mutant all tests pass");
    let mut survivors = Vec::new();
    for mutant in chosen {
        let tried = try_one(&workspace, mutant, options.seeds)?;
        println!("{}", docs::row(&tried));
        if options.writes_docs {
            docs::write(&root, &tried)?;
        }
        if tried.test.is_none() && tried.seed.is_none() {
            survivors.push(mutant.name);
        }
    }
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("nothing has noticed: {}", survivors.join("; ")).into())
}

/// The tests of one part of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    /// Only the scripts, which are built fastest and tell most.
    Scripts,
    Raft,
    Log,
    /// The log on the simulated disk.
    LogDisk,
    Store,
}

impl Suite {
    const ALL: [Self; 4] = [Self::Raft, Self::Log, Self::LogDisk, Self::Store];

    /// Those that know the file.
    fn of(file: &str) -> &'static [Self] {
        match file {
            _ if file.starts_with("crates/raft/") => &[Self::Scripts, Self::Raft],
            _ if file.starts_with("crates/store/") => &[Self::Store],
            _ => &[Self::Log, Self::LogDisk],
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Scripts => &["-p", "kontiki-raft", "--test", "scripts"],
            Self::Raft => &["-p", "kontiki-raft", "--lib", "--tests"],
            Self::Log => &["-p", "kontiki-disk", "-p", "kontiki-log", "--lib", "--tests"],
            Self::LogDisk => &["-p", "kontiki-sim", "--test", "log_disk"],
            Self::Store => &["-p", "kontiki-store", "--lib", "--tests"],
        }
    }
}

/// Whether the code where the rule lives runs in the worlds.
fn are_worlds_asked(mutant: &Mutant) -> bool {
    !mutant.file.starts_with("crates/store/")
}

fn try_one(
    workspace: &Workspace,
    mutant: &'static Mutant,
    seeds: u64,
) -> Result<Tried, Box<dyn Error>> {
    let guard = workspace.mutate(mutant)?;
    let mut test = None;
    for suite in Suite::of(mutant.file) {
        if let Verdict::Killed(by) = workspace.test(suite.arguments())? {
            test = Some(by);
            break;
        }
    }
    let asks = 0 < seeds && are_worlds_asked(mutant);
    let seed = if asks { workspace.hunt(seeds)? } else { None };
    guard.undo()?;
    Ok(Tried { mutant, test, seed })
}

/// Where cargo builds: a copy there is not in anybody's way.
fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}
