//! Part 2A: leader election.

use std::time::Duration;

use super::lab::{Done, ELECTION_TIMEOUT, Lab};

/// A new cluster elects one leader, and keeps it while nothing fails.
pub(super) fn initial_election(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.check_one_leader()?;
    lab.sleep(Duration::from_millis(50))?;
    let term = lab.check_terms()?;
    if term.get() < 1 {
        return Err(lab.failure(format!("a leader in term {term}")));
    }
    // That the term stays is only a warning in the course. Without faults there is no reason
    // for another election, so it is asked for here.
    lab.sleep(2 * ELECTION_TIMEOUT)?;
    let later = lab.check_terms()?;
    if later != term {
        return Err(lab.failure(format!("an election without a fault: term {term}, then {later}")));
    }
    lab.check_one_leader()?;
    Ok(())
}

/// A leader that is cut off is replaced, does not disturb when it returns, and without a quorum
/// nobody leads.
pub(super) fn reelection(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    let first = lab.check_one_leader()?;
    lab.cut(first);
    lab.check_one_leader()?;
    lab.heal(first);
    let second = lab.check_one_leader()?;

    let next = lab.after(second, 1);
    lab.cut(second);
    lab.cut(next);
    lab.sleep(2 * ELECTION_TIMEOUT)?;
    lab.check_no_leader()?;

    lab.heal(next);
    lab.check_one_leader()?;
    lab.heal(second);
    lab.check_one_leader()?;
    Ok(())
}

/// Ten times three of seven are cut off, at random; the rest has a leader each time.
pub(super) fn many_election(lab: &mut Lab) -> Done {
    lab.world.start_all()?;
    lab.check_one_leader()?;
    for _ in 0..10 {
        let cut = [lab.any_node(), lab.any_node(), lab.any_node()];
        for id in cut {
            lab.cut(id);
        }
        lab.check_one_leader()?;
        for id in cut {
            lab.heal(id);
        }
    }
    lab.check_one_leader()?;
    Ok(())
}
