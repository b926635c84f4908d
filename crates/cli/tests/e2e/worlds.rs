//! `kontiki labs` and `kontiki sim`: how they are asked, and what they print.

use crate::servers::kontiki;

/// A file of the simulator's, relative to this crate.
const FOUND: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../sim/tests/found/a_deposed_leader_may_still_change_members.scn"
);

fn printed(args: &[&str]) -> String {
    let output = kontiki(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines that begin with a time.
fn events(text: &str) -> usize {
    let is_event = |line: &&str| {
        line.split_once(" s  ").is_some_and(|(time, _)| time.trim().parse::<f64>().is_ok())
    };
    text.lines().filter(is_event).count()
}

#[test]
fn a_part_of_the_labs_is_asked_for_in_either_case() {
    for part in ["2A", "2a"] {
        let table = printed(&["labs", part, "--runs", "1"]);
        let scenarios: Vec<&str> =
            table.lines().filter_map(|line| line.split(' ').next()?.strip_suffix("_2a")).collect();
        assert_eq!(scenarios, ["initial_election", "reelection", "many_election"], "{table}");
    }
}

#[test]
fn a_trace_shows_every_event_of_a_run() {
    let traced = printed(&["labs", "reelection_2a", "--seed", "7", "--trace"]);
    assert!(traced.starts_with("reelection_2a, 3 servers, seed 7\n"), "{traced}");
    for told in ["--- n1 starts", "RequestVote", "leader", "is cut", "\npassed\n"] {
        assert!(traced.contains(told), "{told}: {traced}");
    }
    // A failure would show the last events only.
    assert!(200 < events(&traced), "{traced}");
    let untraced = printed(&["labs", "reelection_2a", "--seed", "7"]);
    assert_eq!(events(&untraced), 0, "{untraced}");
}

#[test]
fn a_replay_can_be_traced() {
    let traced = printed(&["sim", "--replay", FOUND, "--trace"]);
    assert!(traced.ends_with(": nothing is wrong\n") && 200 < events(&traced), "{traced}");
    assert_eq!(events(&printed(&["sim", "--replay", FOUND])), 0);
}
