//! The text form of a transaction, as etcdctl reads it: comparisons, requests for success,
//! requests for failure; each list ends with an empty line.

use clap::Parser;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::kv::{DelArgs, GetArgs, PutArgs};
use crate::failure::Failure;

pub(super) const HELP: &str = "\
Three lists on stdin, each ended by an empty line: comparisons, then requests for the case that
all of them hold, then requests for the other case.

Comparisons: TARGET(\"KEY\") OP \"VALUE\", with TARGET one of value, version, create, mod, lease
(in hex) and OP one of = != < >. Requests: put, get, del with their flags.

Example:
  kontiki txn <<'END'
  value(\"hello\") = \"world\"

  put hello \"new world\"
  get --prefix h

  get hello

  END";

/// One of the three lists.
#[derive(Clone, Copy, Debug)]
pub(super) enum List {
    Compares,
    Success,
    Failure,
}

impl List {
    pub(super) const fn prompt(self) -> &'static str {
        match self {
            Self::Compares => "compares",
            Self::Success => "success requests (get, put, del)",
            Self::Failure => "failure requests (get, put, del)",
        }
    }

    /// What to say when the input ends inside this list. Half a transaction is never sent.
    pub(super) fn ended_early(self) -> String {
        format!("the input ended within the {}; each list ends with an empty line", self.prompt())
    }
}

/// Builds a transaction from its lines; `next` reads one list, without its empty line.
pub(super) fn read(
    mut next: impl FnMut(List) -> Result<Vec<String>, Failure>,
) -> Result<Txn, Failure> {
    let compares: Vec<Compare> =
        next(List::Compares)?.iter().map(|line| compare(line)).collect::<Result<_, _>>()?;
    let success: Vec<TxnOp> =
        next(List::Success)?.iter().map(|line| request(line)).collect::<Result<_, _>>()?;
    let failure: Vec<TxnOp> =
        next(List::Failure)?.iter().map(|line| request(line)).collect::<Result<_, _>>()?;
    Ok(Txn::new().when(compares).and_then(success).or_else(failure))
}

/// `mod("key") > "0"`
fn compare(line: &str) -> Result<Compare, Failure> {
    let malformed = |what: &str| Failure::input(format!("malformed comparison: {line} ({what})"));
    let (target, rest) = line.split_once('(').ok_or_else(|| malformed("no parenthesis"))?;
    let rest = rest.trim_start();
    let (key, rest) = quoted(rest).ok_or_else(|| malformed("the key must be in quotes"))?;
    let rest =
        rest.trim_start().strip_prefix(')').ok_or_else(|| malformed("no `)` after the key"))?;
    let rest = rest.trim_start();
    let op_len = rest.find(|c: char| !"=!<>".contains(c)).unwrap_or(rest.len());
    let (op, rest) = rest.split_at(op_len);
    let op = match op {
        "=" => CompareOp::Equal,
        "!=" => CompareOp::NotEqual,
        "<" => CompareOp::Less,
        ">" => CompareOp::Greater,
        _ => return Err(malformed("the operator must be one of = != < >")),
    };
    let (value, rest) =
        quoted(rest.trim_start()).ok_or_else(|| malformed("the value must be in quotes"))?;
    if !rest.trim().is_empty() {
        return Err(malformed("something follows the value"));
    }
    let number = |radix: u32| {
        let text =
            std::str::from_utf8(&value).map_err(|_| malformed("the value must be a number"))?;
        i64::from_str_radix(text, radix).map_err(|_| malformed("the value must be a number"))
    };
    match target.trim() {
        "val" | "value" => Ok(Compare::value(key, op, value)),
        "ver" | "version" => Ok(Compare::version(key, op, number(10)?)),
        "c" | "create" => Ok(Compare::create_revision(key, op, number(10)?)),
        "m" | "mod" => Ok(Compare::mod_revision(key, op, number(10)?)),
        "lease" => Ok(Compare::lease(key, op, number(16)?)),
        _ => Err(malformed("the target must be value, version, create, mod or lease")),
    }
}

/// A line of requests, parsed by the flags of the commands of the same name.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum RequestLine {
    Put(PutArgs),
    Get(GetArgs),
    Del(DelArgs),
}

fn request(line: &str) -> Result<TxnOp, Failure> {
    let words = words(line).ok_or_else(|| {
        Failure::input(format!("invalid txn request: {line} (a quote is not closed)"))
    })?;
    let parsed = RequestLine::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Failure::input(format!("invalid txn request: {line} ({reason})"))
    })?;
    match parsed {
        RequestLine::Put(put) => {
            let (key, value) = put.pair().ok_or_else(|| {
                Failure::input(format!("invalid txn request: {line} (put needs a value)"))
            })?;
            Ok(TxnOp::put(key, value, Some(put.options())))
        }
        RequestLine::Get(get) => Ok(TxnOp::get(get.key(), Some(get.options()))),
        RequestLine::Del(del) => Ok(TxnOp::delete(del.key(), Some(del.options()))),
    }
}

/// Splits a line into words. Double quotes know Go's escapes, single quotes know none.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let word;
        match first {
            '"' => {
                let (bytes, after) = quoted(rest)?;
                // A key of the command line is text; what is not UTF-8 cannot be typed there.
                (word, rest) = (String::from_utf8(bytes).ok()?, after);
            }
            '\'' => {
                let (text, after) = rest.strip_prefix('\'')?.split_once('\'')?;
                (word, rest) = (text.to_owned(), after);
            }
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let (text, after) = rest.split_at(end);
                (word, rest) = (text.to_owned(), after);
            }
        }
        words.push(word);
        rest = rest.trim_start();
    }
    Some(words)
}

/// Reads a string in double quotes at the start of `text`; returns its bytes and what follows.
fn quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut bytes = Vec::new();
    let body = text.strip_prefix('"')?;
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((bytes, body.get(at + 1..)?)),
            '\\' => {
                let (_, escape) = chars.next()?;
                match escape {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    'r' => bytes.push(b'\r'),
                    '\\' | '"' => bytes.push(u8::try_from(escape).ok()?),
                    'x' => {
                        let (start, _) = chars.next()?;
                        chars.next()?;
                        let digits = body.get(start..start + 2)?;
                        bytes.push(u8::from_str_radix(digits, 16).ok()?);
                    }
                    _ => return None,
                }
            }
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        let mut lines = text.lines().map(str::to_owned);
        let transaction = read(|list| {
            let mut read = Vec::new();
            loop {
                match lines.next() {
                    None => return Err(Failure::input(list.ended_early())),
                    Some(line) if line.is_empty() => return Ok(read),
                    Some(line) => read.push(line),
                }
            }
        });
        transaction.map(|txn| format!("{txn:?}")).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_transaction_is_read_as_etcdctl_reads_it() {
        let text = r#"value("k 1") = "a\nb"
mod("k") > "7"

put k "two words" --prev-kv
get --prefix k

del 'k x'

"#;
        let expected = Txn::new()
            .when([
                Compare::value("k 1", CompareOp::Equal, "a\nb"),
                Compare::mod_revision("k", CompareOp::Greater, 7),
            ])
            .and_then([
                TxnOp::put("k", "two words", Some(etcd_client::PutOptions::new().with_prev_key())),
                TxnOp::get("k", Some(etcd_client::GetOptions::new().with_prefix())),
            ])
            .or_else([TxnOp::delete("k x", None)]);
        assert_eq!(parse(text), Ok(format!("{expected:?}")));
    }

    #[test]
    fn half_a_transaction_is_refused() {
        for text in ["", "\n", "\n\nput a b\n", "\n\nput a b", "value(\"a\") = \"b\"\n\nput a b\n"]
        {
            let error = parse(text).unwrap_err();
            assert!(error.contains("the input ended within"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_bad_line_is_named_with_its_reason() {
        for (line, reason) in [
            ("vale(\"k\") = \"1\"", "the target must be"),
            ("ver(k) = \"1\"", "the key must be in quotes"),
            ("ver(\"k\") = 1", "the value must be in quotes"),
            ("ver(\"k\") = \"a\"", "must be a number"),
            ("ver(\"k\") ~ \"1\"", "the operator must be"),
            ("ver \"k\"", "no parenthesis"),
            ("ver(\"k\" = \"1\"", "no `)`"),
            ("ver(\"k\") = \"1\" or", "something follows"),
        ] {
            let error = parse(&format!("{line}\n\n\n\n")).unwrap_err();
            assert!(error.contains(line) && error.contains(reason), "{error}");
        }
        for line in ["foo k", "put k", "put k \"v", "get", "get k --bad", "get a b --prefix"] {
            let error = parse(&format!("\n{line}\n\n\n")).unwrap_err();
            assert!(error.starts_with(&format!("invalid txn request: {line} (")), "{error}");
        }
    }

    #[test]
    fn strings_have_gos_escapes() {
        assert_eq!(
            quoted(r#""a\"b\\\x00\xff\n" rest"#),
            Some((b"a\"b\\\0\xff\n".to_vec(), " rest"))
        );
        for bad in [r#""open"#, r#""\q""#, r#""\x1""#, r#""\xé""#, "none"] {
            assert_eq!(quoted(bad), None, "{bad}");
        }
    }
}
