//! A copy of the crates that the tests need, in which rules are broken and tests are run.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{hunt::KILLED, list::Mutant};

/// What is copied.
const CRATES: [&str; 6] = ["raft", "disk", "log", "kontiki", "store", "sim"];

/// A mutant that hangs is dead after this many seconds. The slowest suite needs a tenth of it.
const SECONDS_MAX: &str = "900";

#[derive(Debug)]
pub(crate) struct Workspace {
    dir: PathBuf,
}

#[derive(Debug)]
pub(crate) enum Verdict {
    /// By this test.
    Killed(String),
    Survived,
}

/// A rule is broken until this is undone.
#[derive(Debug)]
#[must_use]
pub(crate) struct Broken {
    path: PathBuf,
    original: String,
}

impl Broken {
    pub(crate) fn undo(self) -> Result<(), Box<dyn Error>> {
        Ok(fs::write(self.path, self.original)?)
    }
}

impl Workspace {
    /// Brings the copy in `dir` up to date, with a manifest that knows only what is in it. What
    /// has not changed is not touched, so that it is not built again.
    pub(crate) fn copy(root: &Path, dir: &Path) -> Result<Self, Box<dyn Error>> {
        for name in CRATES.iter().filter(|name| root.join("crates").join(name).is_dir()) {
            copy_dir(&root.join("crates").join(name), &dir.join("crates").join(name))?;
        }
        copy_dir(&root.join("docs"), &dir.join("docs"))?;
        for page in ["README.md", "Cargo.lock"] {
            write_if_changed(&dir.join(page), &fs::read(root.join(page))?)?;
        }
        let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
        let is_kept = |line: &&str| {
            let line = line.trim_start();
            let is_ours = |name: &str| line.starts_with(&format!("\"crates/{name}\""));
            let is_other = ["\"crates/", "exclude =", "default-members ="];
            CRATES.into_iter().any(is_ours) || !is_other.iter().any(|other| line.starts_with(other))
        };
        let lines: Vec<&str> = manifest.lines().filter(is_kept).collect();
        write_if_changed(&dir.join("Cargo.toml"), lines.join("\n").as_bytes())?;
        Ok(Self { dir: dir.to_owned() })
    }

    pub(crate) fn mutate(&self, mutant: &Mutant) -> Result<Broken, Box<dyn Error>> {
        let path = self.dir.join(mutant.file);
        let original = fs::read_to_string(&path)?;
        fs::write(&path, mutant.apply(&original)?)?;
        Ok(Broken { path, original })
    }

    /// Runs tests until the first failure.
    pub(crate) fn test(&self, arguments: &[&str]) -> Result<Verdict, Box<dyn Error>> {
        self.build(&[&["test", "--no-run"], arguments].concat())?;
        let tested = self.cargo(&[&["test"], arguments].concat())?;
        if tested.status.success() {
            return Ok(Verdict::Survived);
        }
        let output = String::from_utf8_lossy(&tested.stdout);
        Ok(Verdict::Killed(first_failure(&output).unwrap_or("it hangs or dies").to_owned()))
    }

    /// Looks for a world in which an invariant breaks.
    pub(crate) fn hunt(&self, seeds: u64) -> Result<Option<(u64, String)>, Box<dyn Error>> {
        let example = ["-p", "kontiki-sim", "--example", "mutants"];
        self.build(&[&["build"][..], &example].concat())?;
        let seeds = seeds.to_string();
        let hunt = ["--", "--hunt", "--seeds", &seeds];
        let hunted = self.cargo(&[&["run"], &example[..], &hunt].concat())?;
        if hunted.status.success() {
            return Ok(None);
        }
        let output = String::from_utf8_lossy(&hunted.stdout);
        let killed = output.lines().find_map(|line| line.strip_prefix(KILLED));
        let Some((seed, what)) = killed.and_then(|line| line.split_once(": ")) else {
            return Ok(Some((0, "the simulator hangs or dies".to_owned())));
        };
        Ok(Some((seed.parse()?, what.to_owned())))
    }

    fn build(&self, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
        let built = self.cargo(arguments)?;
        if built.status.success() {
            return Ok(());
        }
        Err(format!("does not compile: {}", String::from_utf8_lossy(&built.stderr)).into())
    }

    fn cargo(&self, arguments: &[&str]) -> Result<Output, Box<dyn Error>> {
        let (command, rest) = arguments.split_first().ok_or("cargo wants a command")?;
        Ok(Command::new("timeout")
            .arg(SECONDS_MAX)
            .args([env!("CARGO"), command, "--offline", "--quiet"])
            .args(rest)
            .current_dir(&self.dir)
            .env("CARGO_TARGET_DIR", self.dir.join("target"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("RUST_BACKTRACE", "0")
            .env("RUSTFLAGS", "--cap-lints=warn")
            .output()?)
    }
}

/// The script that failed first, or else the test.
fn first_failure(output: &str) -> Option<&str> {
    let script = output.lines().find_map(|line| {
        let (path, _) = line.split_once(".txt: ")?;
        let is_path = path.contains('/') && !path.contains(' ');
        is_path.then_some(path)
    });
    let test = || output.lines().find_map(|line| line.strip_prefix("---- ")?.split(' ').next());
    script.or_else(test)
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        names.push(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&path, &target)?;
        } else {
            write_if_changed(&target, &fs::read(&path)?)?;
        }
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        let is_gone = !names.contains(&entry.file_name());
        if is_gone && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if is_gone {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<(), Box<dyn Error>> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    Ok(fs::write(path, content)?)
}
