//! etcd's environment variables that this server does not know.
//!
//! Whoever moves from etcd brings a file of them. One that is not known is told of, for a setting
//! that is silently ignored is found out at the worst of times; and one that would have kept
//! strangers out stops the server.

use std::collections::BTreeSet;

use clap::{Args, Command};

use super::ServeArgs;

/// What etcd's TLS variables end with, or begin with, after `ETCD_`.
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
        let Some(rest) = name.strip_prefix("ETCD_") else { continue };
        if known.contains(rest) || value.is_empty() {
            continue;
        }
        let asks_for_tls = TLS.iter().any(|tls| rest.ends_with(tls)) && value != "false";
        if asks_for_tls { &mut unknown.tls } else { &mut unknown.ignored }.push(name);
    }
    unknown.tls.sort();
    unknown.ignored.sort();
    unknown
}

/// The flags of this server as variables, without a prefix.
fn known() -> BTreeSet<String> {
    let command = ServeArgs::augment_args(Command::new("serve"));
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    longs.map(|long| long.replace('-', "_").to_uppercase()).collect()
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
            ("PATH", "/bin"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let unknown = unknown(variables.into_iter());
        assert_eq!(unknown.tls, ["ETCD_PEER_AUTO_TLS", "ETCD_PEER_TRUSTED_CA_FILE"]);
        assert_eq!(unknown.ignored, ["ETCD_CLIENT_CERT_AUTH", "ETCD_SNAPSHOT_COUNT"]);
    }
}
