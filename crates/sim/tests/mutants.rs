//! The mutants fit the sources. That the tests notice them is shown by the example `mutants`,
//! which takes minutes.

#[path = "../examples/mutants/list.rs"]
mod list;

use std::{fs, path::Path};

#[test]
fn every_mutant_still_fits_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for mutant in list::MUTANTS {
        let text = fs::read_to_string(root.join(mutant.file)).expect("a source file");
        assert!(!mutant.patches.is_empty(), "{} changes nothing", mutant.name);
        for (from, to) in mutant.patches {
            assert_eq!(text.matches(from).count(), 1, "{}: {from}", mutant.name);
            assert_ne!(from, to, "{}", mutant.name);
        }
    }
}
