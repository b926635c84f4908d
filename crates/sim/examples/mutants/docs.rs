//! The table of mutants in `docs/testing.md`.

use std::{error::Error, fs, path::Path};

use crate::{Tried, list};

const BEGIN: &str = "<!-- mutants: written by the example of this name -->";
const END: &str = "<!-- end of mutants -->";

/// Longer reports are cut.
const WHAT_CHARS_MAX: usize = 90;

/// What became of a mutant, as a row.
pub(crate) fn row(tried: &Tried) -> String {
    let test = tried.test.as_deref().map_or_else(|| "-".to_owned(), |test| format!("`{test}`"));
    let (seed, what) = match &tried.seed {
        None => ("-".to_owned(), "-".to_owned()),
        Some((seed, what)) => (seed.to_string(), plain(what)),
    };
    format!("{}{test} | {seed} | {what} |", start(tried.mutant.name))
}

fn start(name: &str) -> String {
    format!("| {} | ", plain(name))
}

/// Text that does not break a table.
fn plain(text: &str) -> String {
    let text = text.replace('|', "/");
    // The moment in a world says nothing to a reader.
    let text = text
        .strip_prefix("at ")
        .and_then(|rest| rest.split_once(" s: "))
        .map_or(&*text, |(_, what)| what);
    let mut short: String = text.chars().take(WHAT_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Puts the row into the page, in the place of its former one. Rows of mutants that are no more
/// go.
pub(crate) fn write(root: &Path, tried: &Tried) -> Result<(), Box<dyn Error>> {
    let path = root.join("docs/testing.md");
    let page = fs::read_to_string(&path)?;
    let missing = || format!("{} has no {BEGIN}", path.display());
    let (before, rest) = page.split_once(BEGIN).ok_or_else(missing)?;
    let (table, after) = rest.split_once(END).ok_or_else(missing)?;
    let new = row(tried);
    let rows: Vec<&str> = list::all()
        .filter_map(|mutant| {
            let start = start(mutant.name);
            let known = table.lines().find(|line| line.starts_with(&start));
            if mutant.name == tried.mutant.name { Some(new.as_str()) } else { known }
        })
        .collect();
    let head = "| mutant | first test that fails | seed | what breaks in its world |\n\
                | --- | --- | --- | --- |";
    let table = format!("\n{head}\n{}\n", rows.join("\n"));
    Ok(fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}"))?)
}
