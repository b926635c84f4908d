//! The rules of the house as tests.
//!
//! What ARCHITECTURE.md and CONTRIBUTING.md promise about the tree is checked here, so that it
//! stays true whoever changes it. The rules are in `tests/`; this file only reads the tree. A
//! rule that makes the code worse in one place is broken there with an entry in its list of
//! exceptions and a reason, never by deleting the rule.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A file of the repository.
#[derive(Clone, Debug)]
pub struct File {
    /// From the root, with slashes.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl File {
    /// Reads a file, given from the root.
    ///
    /// # Panics
    ///
    /// When it is not there, or is not text.
    #[must_use]
    pub fn read(path: &str) -> Self {
        let text = fs::read_to_string(root().join(path));
        let text = text.unwrap_or_else(|error| panic!("{path} cannot be read: {error}"));
        Self { path: path.to_owned(), text }
    }

    /// The number of lines.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.text.lines().count()
    }

    /// The part before the unit tests, which by custom are the last module of a file.
    #[must_use]
    pub fn without_tests(&self) -> &str {
        self.text.split("#[cfg(test)]").next().unwrap_or_default()
    }

    /// The lines, each with its number, that are code: no comments, no documentation.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// All files below `dir` whose names end with `.` and `extension`, sorted. Build directories are
/// left out.
///
/// # Panics
///
/// When one of them cannot be read.
#[must_use]
pub fn files(dir: &str, extension: &str) -> Vec<File> {
    let mut paths = Vec::new();
    walk(&root().join(dir), extension, &mut paths);
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let path = path.strip_prefix(root()).unwrap_or(path);
            File::read(&path.to_string_lossy().replace('\\', "/"))
        })
        .collect()
}

fn walk(dir: &Path, extension: &str, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_build = path.file_name().is_some_and(|name| name == "target" || name == ".git");
        if path.is_dir() && !is_build {
            walk(&path, extension, paths);
        } else if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
}

/// The sources of all crates, tests included.
#[must_use]
pub fn sources() -> Vec<File> {
    files("crates", "rs")
}

/// What a `Cargo.toml` says, as far as the rules ask.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The directory below `crates`.
    pub dir: String,
    /// The file itself.
    pub file: File,
    sections: BTreeMap<String, Vec<String>>,
}

impl Manifest {
    fn read(dir: &str) -> Self {
        let file = File::read(&format!("crates/{dir}/Cargo.toml"));
        let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut section = String::new();
        for line in file.text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                name.trim_end().trim_end_matches(']').clone_into(&mut section);
                sections.entry(section.clone()).or_default();
            } else {
                sections.entry(section.clone()).or_default().push(line.to_owned());
            }
        }
        Self { dir: dir.to_owned(), file, sections }
    }

    /// The lines of a section, comments included. Empty if there is none.
    #[must_use]
    pub fn section(&self, name: &str) -> &[String] {
        self.sections.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether there is such a section.
    #[must_use]
    pub fn has_section(&self, name: &str) -> bool {
        self.sections.contains_key(name)
    }

    /// The names of the dependencies in a section, in order.
    #[must_use]
    pub fn dependencies(&self, section: &str) -> Vec<&str> {
        self.section(section)
            .iter()
            .filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()))
            .filter_map(|line| line.split(['.', ' ', '=']).next())
            .collect()
    }
}

/// The manifests of all crates, by directory.
///
/// # Panics
///
/// When `crates` cannot be read.
#[must_use]
pub fn manifests() -> Vec<Manifest> {
    let entries = fs::read_dir(root().join("crates")).expect("the repository has crates");
    let mut dirs: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    dirs.sort();
    dirs.iter().map(|dir| Manifest::read(dir)).collect()
}

/// What stands between single backticks in a page, outside of fenced blocks, without repetition.
#[must_use]
pub fn quoted(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_fenced = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        }
        if is_fenced {
            continue;
        }
        for (at, part) in line.split('`').enumerate() {
            let part = part.to_owned();
            if at % 2 == 1 && !found.contains(&part) {
                found.push(part);
            }
        }
    }
    found
}

/// Whether `name` occurs in `text` as a whole word.
#[must_use]
pub fn has_word(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}
