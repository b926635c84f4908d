//! put, get, del and compact. Their flags serve for the lines of a transaction too.

use std::io::{self, Read as _};

use clap::{Args, ValueEnum};
use etcd_client::{
    CompactionOptions, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget,
};

use super::{ANSWER_BYTES_MAX, ClientArgs};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct PutArgs {
    /// The key
    key: String,

    /// The value; read from stdin if left out
    value: Option<String>,

    /// Lease to attach the key to, in hex
    #[arg(long, value_name = "ID", value_parser = parse_lease, default_value = "0")]
    #[arg(hide_default_value = true)]
    lease: i64,

    /// Show the pair as it was before
    #[arg(long)]
    prev_kv: bool,

    /// Keep the value, change the lease
    #[arg(long, conflicts_with = "value")]
    ignore_value: bool,

    /// Keep the lease, change the value
    #[arg(long)]
    ignore_lease: bool,
}

impl PutArgs {
    pub(super) fn options(&self) -> PutOptions {
        let mut options = PutOptions::new().with_lease(self.lease);
        if self.prev_kv {
            options = options.with_prev_key();
        }
        if self.ignore_value {
            options = options.with_ignore_value();
        }
        if self.ignore_lease {
            options = options.with_ignore_lease();
        }
        options
    }

    /// Key and value as given on the command line; `None` if the value is missing.
    pub(super) fn pair(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let value = if self.ignore_value { Some("") } else { self.value.as_deref() };
        value.map(|value| (self.key.clone().into_bytes(), value.as_bytes().to_vec()))
    }
}

#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// The key, or the first of a range
    key: String,

    /// End of the range; the range holds KEY and not END
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    end: Option<String>,

    /// All keys that begin with KEY
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,

    /// All keys from KEY on
    #[arg(long)]
    from_key: bool,

    /// State at this revision; 0 is now
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    #[arg(allow_negative_numbers = true)]
    rev: i64,

    /// At most this many keys; 0 is no limit
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    #[arg(allow_negative_numbers = true)]
    limit: i64,

    /// Order of the result
    #[arg(long, value_enum, ignore_case = true)]
    order: Option<Order>,

    /// What to order by
    #[arg(long, value_enum, ignore_case = true)]
    sort_by: Option<SortBy>,

    /// Leave the values away
    #[arg(long, conflicts_with = "count_only")]
    keys_only: bool,

    /// Only count the keys
    #[arg(long)]
    count_only: bool,

    /// l: linearizable, sees every finished write; s: serializable, from the server's own state
    #[arg(long, value_enum, default_value = "l", hide_possible_values = true)]
    consistency: Consistency,

    /// Print the values and nothing else (with -w simple)
    #[arg(long)]
    pub(super) print_value_only: bool,

    /// Only keys last changed at or after this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    min_mod_rev: i64,

    /// Only keys last changed at or before this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    max_mod_rev: i64,

    /// Only keys created at or after this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    min_create_rev: i64,

    /// Only keys created at or before this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    max_create_rev: i64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Ascend,
    Descend,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortBy {
    Key,
    Version,
    Create,
    Modify,
    Value,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Consistency {
    #[value(alias = "linearizable")]
    L,
    #[value(alias = "serializable")]
    S,
}

impl GetArgs {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn options(&self) -> GetOptions {
        let mut options = GetOptions::new()
            .with_limit(self.limit)
            .with_revision(self.rev)
            .with_min_mod_revision(self.min_mod_rev)
            .with_max_mod_revision(self.max_mod_rev)
            .with_min_create_revision(self.min_create_rev)
            .with_max_create_revision(self.max_create_rev)
            .with_sort(self.sort_target(), self.sort_order());
        if let Some(end) = &self.end {
            options = options.with_range(end.as_str());
        }
        if self.prefix {
            options = options.with_prefix();
        }
        if self.from_key {
            options = options.with_from_key();
        }
        if self.keys_only {
            options = options.with_keys_only();
        }
        if self.count_only {
            options = options.with_count_only();
        }
        match self.consistency {
            Consistency::L => options,
            Consistency::S => options.with_serializable(),
        }
    }

    fn sort_order(&self) -> SortOrder {
        match self.order {
            None => SortOrder::None,
            Some(Order::Ascend) => SortOrder::Ascend,
            Some(Order::Descend) => SortOrder::Descend,
        }
    }

    fn sort_target(&self) -> SortTarget {
        match self.sort_by {
            None | Some(SortBy::Key) => SortTarget::Key,
            Some(SortBy::Version) => SortTarget::Version,
            Some(SortBy::Create) => SortTarget::Create,
            Some(SortBy::Modify) => SortTarget::Mod,
            Some(SortBy::Value) => SortTarget::Value,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct DelArgs {
    /// The key, or the first of a range
    key: String,

    /// End of the range; the range holds KEY and not END
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    end: Option<String>,

    /// All keys that begin with KEY
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,

    /// All keys from KEY on
    #[arg(long)]
    from_key: bool,

    /// Show the deleted pairs
    #[arg(long)]
    prev_kv: bool,
}

impl DelArgs {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn options(&self) -> DeleteOptions {
        let mut options = DeleteOptions::new();
        if let Some(end) = &self.end {
            options = options.with_range(end.as_str());
        }
        if self.prefix {
            options = options.with_prefix();
        }
        if self.from_key {
            options = options.with_from_key();
        }
        if self.prev_kv {
            options = options.with_prev_key();
        }
        options
    }
}

#[derive(Args, Debug)]
pub(crate) struct CompactArgs {
    /// The oldest revision to keep readable
    #[arg(allow_negative_numbers = true)]
    revision: i64,

    /// Wait until the old revisions are gone from the disk
    #[arg(long)]
    physical: bool,
}

fn parse_lease(text: &str) -> Result<i64, String> {
    i64::from_str_radix(text, 16).map_err(|_| "a lease ID is a number in hex".to_owned())
}

pub(super) async fn put(
    args: &PutArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let (key, value) = match args.pair() {
        Some(pair) => pair,
        None => (args.key.clone().into_bytes(), value_of_stdin()?),
    };
    let mut kv = client.connect().await?.kv_client();
    let answer = client.within_time(kv.put(key, value, Some(args.options()))).await?;
    Ok(client.output(stdout).put(&answer)?)
}

fn value_of_stdin() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    io::stdin()
        .read_to_end(&mut value)
        .map_err(|error| Failure::input(format!("cannot read the value from stdin: {error}")))?;
    if value.is_empty() {
        return Err(Failure::usage("put needs a value, as second argument or on stdin"));
    }
    Ok(value)
}

pub(super) async fn get(
    args: &GetArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut kv = client.connect().await?.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.within_time(kv.get(args.key(), Some(args.options()))).await?;
    let mut output = client.output(stdout);
    if args.count_only {
        Ok(output.count(&answer)?)
    } else if args.print_value_only {
        Ok(output.values(&answer)?)
    } else {
        Ok(output.get(&answer)?)
    }
}

pub(super) async fn del(
    args: &DelArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut kv = client.connect().await?.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.within_time(kv.delete(args.key(), Some(args.options()))).await?;
    Ok(client.output(stdout).del(&answer)?)
}

pub(super) async fn compact(
    args: &CompactArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut options = CompactionOptions::new();
    if args.physical {
        options = options.with_physical();
    }
    let mut kv = client.connect().await?.kv_client();
    client.within_time(kv.compact(args.revision, Some(options))).await?;
    writeln!(stdout, "compacted revision {}", args.revision)?;
    Ok(())
}
