//! Small pieces of text that several formats print alike.

use etcd_client::{AlarmType, Member, StatusResponse};

/// An alarm by its name in the protocol.
pub(super) fn alarm_name(alarm: AlarmType) -> &'static str {
    match alarm {
        AlarmType::None => "NONE",
        AlarmType::Nospace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    }
}

/// A number of bytes for people, as etcdctl shows it: powers of 1,000, two digits, `20 kB`.
pub(super) fn size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut tenths = i128::from(bytes.max(0)) * 10;
    if tenths < 100 {
        return format!("{} B", tenths / 10);
    }
    let mut scale: i128 = 1;
    let mut unit = 0;
    while 1000 <= tenths / 10 / scale && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    // Rounded to a tenth first and then, from ten up, to the even whole: so Go does it.
    tenths = (tenths + scale / 2) / scale;
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 {
        return format!("{}.{} {unit}", tenths / 10, tenths % 10);
    }
    let (whole, rest) = (tenths / 10, tenths % 10);
    let rounded = if 5 < rest || (rest == 5 && whole % 2 == 1) { whole + 1 } else { whole };
    format!("{rounded} {unit}")
}

/// The columns of a server's status. The ID is the server's own.
pub(super) fn status_cells(endpoint: &str, status: &StatusResponse) -> [String; 10] {
    let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
    [
        endpoint.to_owned(),
        format!("{id:x}"),
        status.version().to_owned(),
        size(status.db_size()),
        (status.leader() == id).to_string(),
        status.is_learner().to_string(),
        status.raft_term().to_string(),
        status.raft_index().to_string(),
        status.raft_applied_index().to_string(),
        status.errors().join(", "),
    ]
}

/// The columns of a member. One without a name has never started.
pub(super) fn member_cells(member: &Member) -> [String; 6] {
    [
        format!("{:x}", member.id()),
        if member.name().is_empty() { "unstarted" } else { "started" }.to_owned(),
        member.name().to_owned(),
        member.peer_urls().join(","),
        member.client_urls().join(","),
        member.is_learner().to_string(),
    ]
}

/// Bytes in double quotes with Go's escapes, as its `%q` prints them.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\u{7}' => out.push_str("\\a"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{b}' => out.push_str("\\v"),
                c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

/// Bytes as text for a table: what cannot be shown is escaped.
pub(super) fn shown(bytes: &[u8]) -> String {
    let quoted = quoted(bytes);
    let inner = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inner.unwrap_or_default().replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_etcdctl_rounds_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (21_500, "22 kB"),
            (16_384, "16 kB"),
            (1_552_384, "1.6 MB"),
            (i64::MAX, "9.2 EB"),
            (-1, "0 B"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn bytes_are_quoted_as_go_quotes_them() {
        assert_eq!(quoted(b"a\"b\\c\n\x00\xff\x7f"), r#""a\"b\\c\n\x00\xff\x7f""#);
        assert_eq!(quoted("grün".as_bytes()), "\"grün\"");
        assert_eq!(shown(b"say \"hi\"\n"), "say \"hi\"\\n");
    }
}
