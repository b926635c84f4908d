//! The mutants fit the sources. That the tests notice them is shown by the example `mutants`,
//! which takes minutes.

#[path = "../examples/mutants/list.rs"]
mod list;

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_mutant_still_fits_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut names = BTreeSet::new();
    let mut misfits = Vec::new();
    for mutant in list::all() {
        let text = fs::read_to_string(root.join(mutant.file)).expect("a source file");
        assert!(!mutant.patches.is_empty(), "{} changes nothing", mutant.name);
        assert!(names.insert(mutant.name), "two mutants are called {}", mutant.name);
        misfits.extend(mutant.apply(&text).err());
    }
    assert!(misfits.is_empty(), "{}", misfits.join("\n"));
    assert!(40 < names.len(), "only {} mutants", names.len());
}
