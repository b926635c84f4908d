//! Random worlds, until one of them fails. Runs inside the copy, built with the mutant.

use std::{
    panic::{self, AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use kontiki_sim::swarm;

/// What stands before the seed in what is printed.
pub(crate) const KILLED: &str = "killed by seed ";

/// Tries worlds from seed 1 on. Fails if one of them does, and says what was broken.
pub(crate) fn run(seeds: u64) -> ExitCode {
    panic::set_hook(Box::new(|_| {})); // a broken assertion is what we are after
    for seed in 1..=seeds {
        let what = match catch_unwind(AssertUnwindSafe(|| swarm::run(seed))) {
            Ok(Ok(_)) => continue,
            Ok(Err(failure)) => failure.to_string(),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                format!("assertion: {}", text.unwrap_or("a panic"))
            }
        };
        // The last line says what is wrong, those before it what happened.
        let last = what.trim_end().lines().last().unwrap_or_default().trim();
        println!("{KILLED}{seed}: {last}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
