//! Settings that this server does not know: environment variables, etcd's and ours, and flags.
//!
//! Whoever moves from etcd brings a file of them. A variable that is not known is told of, for a
//! setting that is silently ignored is found out at the worst of times; and one that would have
//! kept strangers out stops the server, as every unknown flag does.

use std::collections::BTreeSet;

use clap::{Args, Command};

use super::ServeArgs;

/// What the variables of flags begin with.
const PREFIXES: [&str; 2] = ["ETCD_", "KONTIKI_"];

/// What else may be set, for our other commands.
const OF_CLIENTS: &str = "KONTIKI_ENDPOINTS";

/// What the variables of etcd's TLS end with.
const TLS: [&str; 12] = [
    "CERT_FILE",
    "KEY_FILE",
    "TRUSTED_CA_FILE",
    "CLIENT_CERT_AUTH",
    "CLIENT_CRL_FILE",
    "PEER_CRL_FILE",
    "AUTO_TLS",
    "CERT_ALLOWED_CN",
    "CERT_ALLOWED_HOSTNAME",
    "CIPHER_SUITES",
    "TLS_MIN_VERSION",
    "TLS_MAX_VERSION",
];

/// What a set of variables means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    /// They ask for TLS.
    pub(super) tls: Vec<String>,
    /// They are ignored.
    pub(super) ignored: Vec<String>,
}

/// Which of `variables`, names and values, this server does not know.
pub(super) fn unknown(variables: impl Iterator<Item = (String, String)>) -> Unknown {
    let known = known();
    let mut unknown = Unknown::default();
    for (name, value) in variables {
        let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        let Some(rest) = rest.filter(|rest| !known.contains(*rest)) else { continue };
        if value.is_empty() || name == OF_CLIENTS {
            continue;
        }
        let asks_for_tls = is_of_tls(rest) && value != "false";
        if asks_for_tls { &mut unknown.tls } else { &mut unknown.ignored }.push(name);
    }
    unknown.tls.sort();
    unknown.ignored.sort();
    unknown
}

/// What to do about the flags among `args` that this server does not know, if there are any.
pub(crate) fn advice<'a>(args: impl Iterator<Item = &'a str>) -> Option<String> {
    let known = known();
    let flags = args.filter_map(|arg| arg.strip_prefix("--")?.split('=').next());
    let unknown = flags.filter(|flag| !["", "help"].contains(flag));
    let unknown = unknown.filter(|flag| !known.contains(&variable(flag)));
    let (tls, others): (Vec<&str>, Vec<&str>) =
        unknown.partition(|flag| is_of_tls(&variable(flag)));
    let named = |flags: &[&str]| format!("--{}", flags.join(", --"));
    let tls = (!tls.is_empty())
        .then(|| format!("{}: TLS is not supported yet; leave out what asks for it", named(&tls)));
    let others = (!others.is_empty()).then(|| {
        format!(
            "{}: not known to this server, though etcd may have it; leave it out, see kontiki \
             serve --help",
            named(&others)
        )
    });
    let advice: Vec<String> = tls.into_iter().chain(others).collect();
    (!advice.is_empty()).then(|| advice.join("\n       "))
}

/// The flags of this server as variables, without a prefix.
fn known() -> BTreeSet<String> {
    let command = ServeArgs::augment_args(Command::new("serve"));
    command.get_arguments().filter_map(clap::Arg::get_long).map(variable).collect()
}

/// A flag as a variable, without a prefix.
fn variable(flag: &str) -> String {
    flag.replace('-', "_").to_uppercase()
}

fn is_of_tls(variable: &str) -> bool {
    TLS.iter().any(|tls| variable.ends_with(tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_named() {
        let variables = [
            ("ETCD_NAME", "n1"),
            ("ETCD_INITIAL_CLUSTER_STATE", "new"),
            ("ETCD_SNAPSHOT_COUNT", "10000"),
            ("ETCD_PEER_TRUSTED_CA_FILE", "ca.pem"),
            ("ETCD_CLIENT_CERT_AUTH", "false"),
            ("ETCD_PEER_AUTO_TLS", "true"),
            ("ETCD_KEY_FILE", ""),
            ("ETCDCTL_API", "3"),
            ("KONTIKI_NAME", "n1"),
            ("KONTIKI_ENDPOINTS", "127.0.0.1:2379"),
            ("KONTIKI_ELECTION_TIMOUT", "200"),
            ("KONTIKI_CERT_FILE", "cert.pem"),
            ("PATH", "/bin"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let unknown = unknown(variables.into_iter());
        assert_eq!(
            unknown.tls,
            ["ETCD_PEER_AUTO_TLS", "ETCD_PEER_TRUSTED_CA_FILE", "KONTIKI_CERT_FILE"]
        );
        assert_eq!(
            unknown.ignored,
            ["ETCD_CLIENT_CERT_AUTH", "ETCD_SNAPSHOT_COUNT", "KONTIKI_ELECTION_TIMOUT"]
        );
    }
}
