//! The mutants: small lies that the tests must notice.

// Paths, because the test `mutants` includes this file too.
#[path = "core.rs"]
mod core;
#[path = "log.rs"]
mod log;
#[path = "members.rs"]
mod members;
#[path = "recovery.rs"]
mod recovery;
#[path = "store.rs"]
mod store;

/// A change of one source file that breaks one rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutant {
    /// What it does, in words. Names its row in `docs/testing.md`.
    pub(crate) name: &'static str,
    /// The file, from the root of the workspace.
    pub(crate) file: &'static str,
    /// What is replaced by what. Each text must stand in the file exactly once.
    pub(crate) patches: &'static [(&'static str, &'static str)],
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Mutant> {
    [core::MUTANTS, members::MUTANTS, recovery::MUTANTS, log::MUTANTS, store::MUTANTS]
        .into_iter()
        .flatten()
}

impl Mutant {
    /// Applies the patches. A text that is not there, or is there twice, is an error: the
    /// sources have moved on, and the mutant must follow.
    pub(crate) fn apply(&self, original: &str) -> Result<String, String> {
        let mut text = original.to_owned();
        for (from, to) in self.patches {
            let count = text.matches(from).count();
            if count != 1 || from == to {
                return Err(format!("{}: {count} times in {}: {from}", self.name, self.file));
            }
            text = text.replace(from, to);
        }
        Ok(text)
    }
}
