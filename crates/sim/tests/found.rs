//! What the swarm has found, made smaller: each file below `found` failed once.

use std::{fs, path::Path};

use kontiki_sim::{scenario::Scenario, swarm};

#[test]
fn what_was_found_once_does_not_come_back() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/found");
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let scenario: Scenario = fs::read_to_string(&path).unwrap().parse().unwrap();
        if let Err(failure) = swarm::play(&scenario) {
            panic!("{}:\n{failure}", path.display());
        }
        count += 1;
    }
    assert!(0 < count, "there is something to play");
}
