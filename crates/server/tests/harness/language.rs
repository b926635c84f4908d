//! The language of the scripts: requests in a line, answers in a few.
//!
//! ```text
//! put KEY VALUE [lease=N] [prev_kv] [ignore_value] [ignore_lease]
//! range KEY [END] [limit=N] [revision=N] [order=N] [target=N] [serializable] [keys_only]
//!           [count_only] [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! delete KEY [END] [prev_kv]
//! txn GUARD , GUARD … ? OP , OP … : OP , OP …
//!     GUARD  version|create|mod|value|lease|N KEY[..END] =|!=|<|>|N [OPERAND]
//!     OP     put … | range … | delete … | empty | ( GUARD … ? OP … : OP … )
//! compact REVISION [physical]
//! call PATH                  an empty message to whatever is at PATH
//! health [SERVICE]
//! ```
//!
//! Words are separated by spaces. `''` is the empty word, `\0` a zero byte, `\xff` a byte, and
//! `x*N` is `x` N times.

use bytes::Bytes;
use kontiki_server::proto::{etcdserverpb as pb, mvccpb};
use pb::{compare::TargetUnion, request_op::Request, response_op::Response};

/// A request.
pub(crate) enum Call {
    Path(String),
    Health(String),
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
}

/// Reads one line.
pub(crate) fn parse(line: &str) -> Result<Call, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (&verb, rest) = words.split_first().ok_or("an empty line")?;
    Ok(match verb {
        "call" => Call::Path((*rest.first().ok_or("call what?")?).to_owned()),
        "health" => Call::Health(rest.first().copied().unwrap_or_default().to_owned()),
        "compact" => {
            let (positional, options) = split(rest);
            Call::Compact(pb::CompactionRequest {
                revision: number(positional.first().ok_or("compact what?")?)?,
                physical: flag(&options, "physical"),
            })
        }
        "txn" => {
            let mut words = Words(rest);
            let txn = words.txn()?;
            match words.0 {
                [] => Call::Txn(txn),
                [word, ..] => return Err(format!("{word} is left over")),
            }
        }
        _ => match op(&words)?.request.ok_or("empty is for transactions")? {
            Request::RequestRange(range) => Call::Range(range),
            Request::RequestPut(put) => Call::Put(put),
            Request::RequestDeleteRange(delete) => Call::DeleteRange(delete),
            Request::RequestTxn(txn) => Call::Txn(txn),
        },
    })
}

struct Words<'a>(&'a [&'a str]);

impl<'a> Words<'a> {
    /// Everything up to one of `ends`, split at commas. Parentheses hold together.
    fn list(&mut self, ends: &[&str]) -> Vec<&'a [&'a str]> {
        let (mut items, mut start, mut at, mut depth) = (Vec::new(), 0, 0, 0);
        while let Some(word) = self.0.get(at) {
            match *word {
                "(" => depth += 1,
                ")" if depth == 0 => break,
                ")" => depth -= 1,
                "," if depth == 0 => {
                    items.push(&self.0[start..at]);
                    start = at + 1;
                }
                word if depth == 0 && ends.contains(&word) => break,
                _ => {}
            }
            at += 1;
        }
        if start < at {
            items.push(&self.0[start..at]);
        }
        self.0 = &self.0[at..];
        items
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        match self.0.split_first() {
            Some((first, rest)) if *first == word => {
                self.0 = rest;
                Ok(())
            }
            other => Err(format!("expected {word}, not {:?}", other.map(|(first, _)| first))),
        }
    }

    fn txn(&mut self) -> Result<pb::TxnRequest, String> {
        let compare = self.list(&["?"]).into_iter().map(guard).collect::<Result<_, _>>()?;
        self.expect("?")?;
        let success = self.list(&[":"]).into_iter().map(op).collect::<Result<_, _>>()?;
        self.expect(":")?;
        let failure = self.list(&[]).into_iter().map(op).collect::<Result<_, _>>()?;
        Ok(pb::TxnRequest { compare, success, failure })
    }
}

fn op(words: &[&str]) -> Result<pb::RequestOp, String> {
    let (&verb, rest) = words.split_first().ok_or("an empty operation")?;
    let (positional, options) = split(rest);
    let key = positional.first().map_or(Ok(Bytes::new()), |word| word_bytes(word))?;
    let second = positional.get(1).map_or(Ok(Bytes::new()), |word| word_bytes(word))?;
    let value = |name| option(&options, name);
    let request = match verb {
        "put" => Request::RequestPut(pb::PutRequest {
            key,
            value: second,
            lease: value("lease")?,
            prev_kv: flag(&options, "prev_kv"),
            ignore_value: flag(&options, "ignore_value"),
            ignore_lease: flag(&options, "ignore_lease"),
        }),
        "range" => Request::RequestRange(pb::RangeRequest {
            key,
            range_end: second,
            limit: value("limit")?,
            revision: value("revision")?,
            sort_order: small(value("order")?),
            sort_target: small(value("target")?),
            serializable: flag(&options, "serializable"),
            keys_only: flag(&options, "keys_only"),
            count_only: flag(&options, "count_only"),
            min_mod_revision: value("min_mod")?,
            max_mod_revision: value("max_mod")?,
            min_create_revision: value("min_create")?,
            max_create_revision: value("max_create")?,
        }),
        "delete" => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key,
            range_end: second,
            prev_kv: flag(&options, "prev_kv"),
        }),
        "(" => {
            let mut inner = Words(rest);
            let txn = inner.txn()?;
            inner.expect(")")?;
            Request::RequestTxn(txn)
        }
        "empty" => return Ok(pb::RequestOp { request: None }),
        other => return Err(format!("unknown operation {other}")),
    };
    Ok(pb::RequestOp { request: Some(request) })
}

fn guard(words: &[&str]) -> Result<pb::Compare, String> {
    let [target, keys, relation, operand @ ..] = words else {
        return Err(format!("{words:?} is no guard"));
    };
    let (key, end) = keys.split_once("..").unwrap_or((keys, "''"));
    let operand = operand.first();
    let number = operand.map_or(Ok(0), |word| number(word));
    let (target, union) = match *target {
        "version" => (0, operand.map(|_| number.map(TargetUnion::Version))),
        "create" => (1, operand.map(|_| number.map(TargetUnion::CreateRevision))),
        "mod" => (2, operand.map(|_| number.map(TargetUnion::ModRevision))),
        "value" => (3, operand.map(|word| word_bytes(word).map(TargetUnion::Value))),
        "lease" => (4, operand.map(|_| number.map(TargetUnion::Lease))),
        other => (small(self::number(other)?), None),
    };
    Ok(pb::Compare {
        result: match *relation {
            "=" => 0,
            ">" => 1,
            "<" => 2,
            "!=" => 3,
            other => small(self::number(other)?),
        },
        target,
        key: word_bytes(key)?,
        target_union: union.transpose()?,
        range_end: word_bytes(end)?,
    })
}

/// Positional words, and options.
fn split<'a>(words: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    const FLAGS: [&str; 7] = [
        "prev_kv",
        "ignore_value",
        "ignore_lease",
        "serializable",
        "keys_only",
        "count_only",
        "physical",
    ];
    words.iter().copied().partition(|word| !FLAGS.contains(word) && !word.contains('='))
}

fn flag(options: &[&str], name: &str) -> bool {
    options.contains(&name)
}

fn option(options: &[&str], name: &str) -> Result<i64, String> {
    let mut pairs = options.iter().filter_map(|option| option.split_once('='));
    pairs.find(|(known, _)| *known == name).map_or(Ok(0), |(_, value)| number(value))
}

fn number(word: &str) -> Result<i64, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn small(number: i64) -> i32 {
    i32::try_from(number).expect("an enumeration is 32 bits")
}

fn word_bytes(word: &str) -> Result<Bytes, String> {
    if word == "''" {
        return Ok(Bytes::new());
    }
    if let Some((byte, count)) = word.split_once('*') {
        let count = usize::try_from(number(count)?).map_err(|error| error.to_string())?;
        return Ok(byte.repeat(count).into());
    }
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [b'0', after @ ..]) => {
                bytes.push(0);
                after
            }
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = str::from_utf8(&digits).map_err(|error| error.to_string())?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?);
                after
            }
            (byte, after) => {
                bytes.push(*byte);
                after
            }
        };
    }
    Ok(bytes.into())
}

// ---------------------------------------------------------------- answers

/// The header of an answer that is not inside of another: it must say who answered.
fn outer(header: Option<&pb::ResponseHeader>) -> String {
    let Some(header) = header else { return "no header".to_owned() };
    let is_complete = header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0;
    let remark = if is_complete { "" } else { " incomplete header" };
    format!("revision={}{remark}", header.revision)
}

/// The header of an answer inside of a transaction: nobody must have answered.
fn inner(header: Option<&pb::ResponseHeader>) -> String {
    let Some(header) = header else { return "no header".to_owned() };
    let is_bare = header.cluster_id == 0 && header.member_id == 0 && header.raft_term == 0;
    let remark = if is_bare { "" } else { " full header" };
    format!("revision={}{remark}", header.revision)
}

pub(crate) fn show_range(answer: &pb::RangeResponse) -> String {
    range_lines(&outer(answer.header.as_ref()), answer, "")
}

pub(crate) fn show_put(answer: &pb::PutResponse) -> String {
    put_lines(&outer(answer.header.as_ref()), answer, "")
}

pub(crate) fn show_delete(answer: &pb::DeleteRangeResponse) -> String {
    delete_lines(&outer(answer.header.as_ref()), answer, "")
}

pub(crate) fn show_txn(answer: &pb::TxnResponse) -> String {
    txn_lines(&outer(answer.header.as_ref()), answer, "")
}

pub(crate) fn show_compact(answer: &pb::CompactionResponse) -> String {
    format!("{}\n", outer(answer.header.as_ref()))
}

fn range_lines(header: &str, answer: &pb::RangeResponse, indent: &str) -> String {
    let more = if answer.more { " more" } else { "" };
    let mut text = format!("{indent}range {header} count={}{more}\n", answer.count);
    text.extend(answer.kvs.iter().map(|kv| format!("{indent}  {}\n", show_kv(kv))));
    text
}

fn put_lines(header: &str, answer: &pb::PutResponse, indent: &str) -> String {
    let previous = answer.prev_kv.as_ref().map(|kv| format!("{indent}  was {}\n", show_kv(kv)));
    format!("{indent}put {header}\n{}", previous.unwrap_or_default())
}

fn delete_lines(header: &str, answer: &pb::DeleteRangeResponse, indent: &str) -> String {
    let mut text = format!("{indent}delete {header} deleted={}\n", answer.deleted);
    text.extend(answer.prev_kvs.iter().map(|kv| format!("{indent}  was {}\n", show_kv(kv))));
    text
}

fn txn_lines(header: &str, answer: &pb::TxnResponse, indent: &str) -> String {
    let outcome = if answer.succeeded { "succeeded" } else { "failed" };
    let mut text = format!("{indent}txn {header} {outcome}\n");
    let deeper = format!("{indent}  ");
    for op in &answer.responses {
        text += &match &op.response {
            Some(Response::ResponseRange(range)) => {
                range_lines(&inner(range.header.as_ref()), range, &deeper)
            }
            Some(Response::ResponsePut(put)) => {
                put_lines(&inner(put.header.as_ref()), put, &deeper)
            }
            Some(Response::ResponseDeleteRange(delete)) => {
                delete_lines(&inner(delete.header.as_ref()), delete, &deeper)
            }
            Some(Response::ResponseTxn(txn)) => {
                txn_lines(&inner(txn.header.as_ref()), txn, &deeper)
            }
            None => format!("{deeper}nothing\n"),
        };
    }
    text
}

fn show_kv(kv: &mvccpb::KeyValue) -> String {
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease={}", kv.lease) };
    format!(
        "{} = {}  create={} mod={} version={}{lease}",
        show_bytes(&kv.key),
        show_bytes(&kv.value),
        kv.create_revision,
        kv.mod_revision,
        kv.version,
    )
}

fn show_bytes(bytes: &[u8]) -> String {
    match bytes {
        [] => "''".to_owned(),
        [first, rest @ ..] if 20 < rest.len() && rest.iter().all(|byte| byte == first) => {
            format!("{}*{}", first.escape_ascii(), bytes.len())
        }
        _ => bytes.escape_ascii().to_string(),
    }
}
