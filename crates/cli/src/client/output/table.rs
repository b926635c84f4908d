//! `-w table`: boxes as etcdctl draws them, headings centred and cells to the right.

use std::io::{self, Write};

use etcd_client::{
    DeleteResponse, GetResponse, KeyValue, MemberListResponse, PutResponse, StatusResponse,
    TxnOpResponse, TxnResponse,
};

use super::text;

const PAIR: [&str; 6] = ["KEY", "VALUE", "CREATE REV", "MOD REV", "VERSION", "LEASE"];

pub(super) fn put(out: &mut dyn Write, answer: &PutResponse) -> io::Result<()> {
    writeln!(out, "OK")?;
    answer.prev_key().map_or(Ok(()), |pair| pairs(out, std::slice::from_ref(pair)))
}

pub(super) fn get(out: &mut dyn Write, answer: &GetResponse) -> io::Result<()> {
    if answer.kvs().is_empty() || answer.more() {
        let shown = answer.kvs().len();
        writeln!(out, "{} keys, {shown} shown", answer.count())?;
    }
    if answer.kvs().is_empty() { Ok(()) } else { pairs(out, answer.kvs()) }
}

pub(super) fn del(out: &mut dyn Write, answer: &DeleteResponse) -> io::Result<()> {
    writeln!(out, "{} deleted", answer.deleted())?;
    if answer.prev_kvs().is_empty() { Ok(()) } else { pairs(out, answer.prev_kvs()) }
}

pub(super) fn txn(out: &mut dyn Write, answer: &TxnResponse) -> io::Result<()> {
    writeln!(out, "{}", if answer.succeeded() { "SUCCESS" } else { "FAILURE" })?;
    for response in answer.op_responses() {
        writeln!(out)?;
        match response {
            TxnOpResponse::Put(answer) => put(out, &answer)?,
            TxnOpResponse::Get(answer) => get(out, &answer)?,
            TxnOpResponse::Delete(answer) => del(out, &answer)?,
            TxnOpResponse::Txn(answer) => txn(out, &answer)?,
        }
    }
    Ok(())
}

pub(super) fn status(out: &mut dyn Write, rows: &[(String, StatusResponse)]) -> io::Result<()> {
    let heading = [
        "ENDPOINT",
        "ID",
        "VERSION",
        "DB SIZE",
        "IS LEADER",
        "IS LEARNER",
        "RAFT TERM",
        "RAFT INDEX",
        "RAFT APPLIED INDEX",
        "ERRORS",
    ];
    let rows: Vec<_> =
        rows.iter().map(|(endpoint, status)| text::status_cells(endpoint, status)).collect();
    draw(out, heading, &rows)
}

pub(super) fn members(out: &mut dyn Write, answer: &MemberListResponse) -> io::Result<()> {
    let heading = ["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
    let rows: Vec<_> = answer.members().iter().map(text::member_cells).collect();
    draw(out, heading, &rows)
}

fn pairs(out: &mut dyn Write, pairs: &[KeyValue]) -> io::Result<()> {
    let rows: Vec<_> = pairs
        .iter()
        .map(|pair| {
            [
                text::shown(pair.key()),
                text::shown(pair.value()),
                pair.create_revision().to_string(),
                pair.mod_revision().to_string(),
                pair.version().to_string(),
                format!("{:x}", pair.lease()),
            ]
        })
        .collect();
    draw(out, PAIR, &rows)
}

/// Draws a table with a heading.
pub(crate) fn draw<const N: usize>(
    out: &mut dyn Write,
    heading: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let mut widths = heading.map(console::measure_text_width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(console::measure_text_width(cell));
        }
    }
    let mut rule = String::from("+");
    for width in widths {
        rule.push_str(&"-".repeat(width + 2));
        rule.push('+');
    }
    writeln!(out, "{rule}")?;
    write!(out, "|")?;
    for (cell, width) in heading.iter().zip(widths) {
        let gap = width - console::measure_text_width(cell);
        let (left, right) = (" ".repeat(gap / 2), " ".repeat(gap - gap / 2));
        write!(out, " {left}{cell}{right} |")?;
    }
    writeln!(out, "\n{rule}")?;
    for row in rows {
        write!(out, "|")?;
        for (cell, width) in row.iter().zip(widths) {
            let gap = " ".repeat(width - console::measure_text_width(cell));
            write!(out, " {gap}{cell} |")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{rule}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_as_etcdctls() {
        let mut out = Vec::new();
        let rows = [["c5fb703d".to_owned(), "started".to_owned()]];
        draw(&mut out, ["ID", "STATUS"], &rows).unwrap();
        let expected = "\
+----------+---------+
|    ID    | STATUS  |
+----------+---------+
| c5fb703d | started |
+----------+---------+
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
