//! The command line before clap sees it.
//!
//! Three habits of etcd's tools that clap does not know: flags with a single dash (`-name n1`,
//! Go's flag package), a second environment variable for each flag, and the client's flags
//! before the command (`kontiki --endpoints … get k`). Everything else is clap's.

use std::{env, ffi::OsString};

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::serve;

/// The client's flags that may stand before the command; true if a value follows.
const CLIENT_FLAGS: &[(&str, bool)] = &[
    ("--endpoints", true),
    ("--write-out", true),
    ("-w", true),
    ("--command-timeout", true),
    ("--dial-timeout", true),
    ("--hex", false),
];

/// Rewrites `args` (the program's name included) to the form that clap parses.
pub(crate) fn normalized(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let moved = leading_client_flags(&args);
    if 0 < moved && 1 + moved < args.len() {
        // `kontiki FLAGS command …` becomes `kontiki command FLAGS …`.
        let command = args.remove(1 + moved);
        args.insert(1, command);
    }
    if args.get(1).is_some_and(|command| command == "serve") {
        for arg in args.iter_mut().skip(2) {
            if has_single_dash(arg) {
                let mut with_two = OsString::from("-");
                with_two.push(&*arg);
                *arg = with_two;
            }
        }
    }
    args
}

/// How many arguments after the program's name are client flags and their values.
fn leading_client_flags(args: &[OsString]) -> usize {
    let mut count = 0;
    while let Some(arg) = args.get(1 + count).and_then(|arg| arg.to_str()) {
        let (name, inline) = arg.split_once('=').map_or((arg, false), |(name, _)| (name, true));
        match CLIENT_FLAGS.iter().find(|(flag, _)| *flag == name) {
            Some((_, has_value)) => count += if *has_value && !inline { 2 } else { 1 },
            None => break,
        }
    }
    count
}

/// True for `-name`, false for `--name`, `-w`, `-1` and plain words.
fn has_single_dash(arg: &OsString) -> bool {
    let bytes = arg.as_encoded_bytes();
    bytes.len() > 2
        && bytes.first() == Some(&b'-')
        && bytes.get(1).is_some_and(u8::is_ascii_alphabetic)
}

/// Gives every flag of `serve` its environment variable: `KONTIKI_X` if that is set, else `ETCD_X`.
///
/// A flag on the command line wins over both.
pub(crate) fn with_environment(command: Command) -> Command {
    command.mut_subcommand("serve", |serve| {
        serve.mut_args(|arg| match arg.get_long().map(variable) {
            Some(variable) if !arg.is_hide_set() => arg.env(variable).hide_env_values(true),
            _ => arg,
        })
    })
}

/// The environment variable that stands for a flag.
fn variable(long: &str) -> String {
    let name = long.replace('-', "_").to_uppercase();
    let (ours, etcds) = (format!("KONTIKI_{name}"), format!("ETCD_{name}"));
    if env::var_os(&ours).is_none() && env::var_os(&etcds).is_some() { etcds } else { ours }
}

/// The environment variable that a wrong value came from, if it did.
pub(crate) fn environment_at_fault(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    let long = flag.strip_prefix("--")?.split([' ', '=']).next()?;
    let is_given = args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
        let rest = arg.strip_prefix("--").and_then(|arg| arg.strip_prefix(long));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let variable = variable(long);
    if is_given || env::var_os(&variable).is_none() { None } else { Some(variable) }
}

/// What to do about flags that `serve` does not know, if they are what is wrong.
pub(crate) fn advice(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let is_serve = args.get(1).is_some_and(|command| command == "serve");
    if !is_serve || error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    serve::advice(args.iter().skip(2).filter_map(|arg| arg.to_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalize(line: &str) -> String {
        let args = normalized(line.split(' ').map(OsString::from));
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn client_flags_may_stand_before_the_command() {
        assert_eq!(
            normalize("kontiki --endpoints a:1,b:2 -w json get k"),
            "kontiki get --endpoints a:1,b:2 -w json k"
        );
        assert_eq!(
            normalize("kontiki --endpoints=a:1 --hex get k"),
            "kontiki get --endpoints=a:1 --hex k"
        );
        assert_eq!(normalize("kontiki get k -w json"), "kontiki get k -w json");
        assert_eq!(normalize("kontiki --endpoints"), "kontiki --endpoints");
    }

    #[test]
    fn serve_takes_flags_with_one_dash() {
        assert_eq!(
            normalize("kontiki serve -name n1 -data-dir=/d --threads 1 -1"),
            "kontiki serve --name n1 --data-dir=/d --threads 1 -1"
        );
        assert_eq!(normalize("kontiki put -abc d"), "kontiki put -abc d");
    }
}
