//! docs/protocol.md says what the code does.

use moai_transport::frame::{CLOCK_ALLOWANCE, FrameKind, MAX_FRAME_LEN, Signatory, VERSION};
use moai_transport::message::{
    ErrorCode, MAX_CHUNK_LEN, MAX_CHUNKS, MAX_ERROR_MESSAGE_LEN, MAX_JOBS, MAX_STATUS_LEN,
};
use moai_transport::topic::Topic;

use crate::golden;
use crate::support::broker::ACL;
use crate::support::values::session;

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

/// The lines of the first code block of this language.
fn block(language: &str) -> &'static str {
    blocks(language).next().unwrap()
}

/// The lines of each code block of this language.
fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let begin = format!("```{language}\n");
    let begins: Vec<_> = DOCUMENT.match_indices(&begin).map(|(at, _)| at + begin.len()).collect();
    begins.into_iter().map(|at| DOCUMENT[at..].split_once("```").unwrap().0)
}

/// The bytes in a block of hexadecimal digits and comments.
fn bytes_of(block: &str) -> Vec<u8> {
    let without_comments = block.lines().filter_map(|line| line.split('#').next());
    let text: String = without_comments.flat_map(str::split_whitespace).collect();
    hex::decode(text).unwrap()
}

/// The cells of each table row that begins with a cell of this form.
fn rows(is_first: impl Fn(&str) -> bool) -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| -> Vec<_> {
        line.trim_matches('|').split('|').map(str::trim).collect()
    };
    let tables = DOCUMENT.lines().filter(|line| line.starts_with('|')).map(cells);
    tables.filter(|row| is_first(row[0])).collect()
}

#[test]
fn its_examples_are_the_golden_frames() {
    let examples: Vec<_> = blocks("hex").map(|block| hex::encode(bytes_of(block))).collect();
    let golden = [FrameKind::Job, FrameKind::Open].map(|kind| hex::encode(golden::file(kind)));
    assert_eq!(examples, golden);
    assert_eq!(block("pem").as_bytes(), golden::AUTHORITY);
}

#[test]
fn its_table_of_signatures_is_the_codes() {
    for (first, signatory) in [
        ("Open, Report", Some(Signatory::Robot)),
        ("Job, Delete, Attest", Some(Signatory::Session)),
        ("Have, Challenge, Result, Error, Models", Some(Signatory::Server)),
        ("Command", Some(Signatory::Operator)),
        ("Chunk", None),
    ] {
        let row = rows(|cell| cell == first).concat();
        assert_eq!(row.len(), 3, "{first}");
        let kinds = FrameKind::ALL.into_iter().filter(|kind| kind.signatory() == signatory);
        let mut kinds: Vec<_> = kinds.map(|kind| format!("{kind:?}")).collect();
        let mut named: Vec<_> = first.split(", ").map(str::to_owned).collect();
        kinds.sort();
        named.sort();
        assert_eq!(kinds, named);
    }
    for words in ["more than 300 s ago", "is 5 minutes\nfor an Open and 24 hours", "above 10000"] {
        assert!(DOCUMENT.contains(words), "{words}");
    }
    assert_eq!(CLOCK_ALLOWANCE.as_secs(), 300);
    assert_eq!(FrameKind::Open.max_lifetime().as_secs(), 5 * 60);
    assert_eq!(FrameKind::Models.max_lifetime().as_secs(), 24 * 60 * 60);
    assert_eq!(MAX_JOBS, 10_000);
}

#[test]
fn the_table_of_kinds_is_the_codes() {
    let table: Vec<_> = rows(|first| first.parse::<u8>().is_ok())
        .into_iter()
        .filter(|row| row.len() == 5)
        .map(|row| row[..4].join(" "))
        .collect();
    let code = FrameKind::ALL.map(|kind| {
        format!("{} {kind:?} {} {}", kind as u8, kind.max_header_len(), kind.max_body_len())
    });
    assert_eq!(table, code);
    assert_eq!((VERSION, MAX_FRAME_LEN), (1, 1 << 20));
}

#[test]
fn the_table_of_topics_is_the_codes() {
    let table = rows(|first| first.starts_with("`moai/v1/"));
    assert_eq!(table.len(), 14);
    for row in table {
        let text = row[0]
            .trim_matches('`')
            .replace("{tenant}", "acme")
            .replace("{robot}", "robot-1")
            .replace("{worker}", "w1")
            .replace("{session}", &session().to_string());
        let topic: Topic = text.parse().unwrap();
        let kind = topic.kind().map_or("JSON".to_owned(), |kind| format!("{kind:?}"));
        assert_eq!(kind, row[1], "{text}");
    }
}

#[test]
fn the_table_of_error_codes_is_the_codes() {
    let table = rows(|first| serde_json::from_str::<ErrorCode>(&first.replace('`', "\"")).is_ok());
    let transient: Vec<_> =
        table.iter().filter(|row| row[2] == "tries again later").map(|row| row[0]).collect();
    assert_eq!(table.len(), 15);
    assert_eq!(
        transient,
        ["`expired_frame`", "`untrusted_certificate`", "`not_attested`", "`busy`", "`internal`"]
    );
    for row in table {
        let code: ErrorCode = serde_json::from_str(&row[0].replace('`', "\"")).unwrap();
        assert_eq!(code.is_transient(), row[2] == "tries again later", "{code:?}");
    }
}

#[test]
fn its_access_rules_are_those_the_tests_ran_with() {
    assert_eq!(block("acl"), ACL);
}

#[test]
fn its_limits_are_the_codes() {
    let row = |key: &str| rows(|first| first == key).concat().join(" ");
    assert!(row("`chunk_len`").contains(&format!("1 to {MAX_CHUNK_LEN}")));
    assert!(row("`chunk_digests`").contains(&format!("at most {MAX_CHUNKS}")));
    assert!(row("`bitmap`").contains(&format!("at most {}", MAX_CHUNKS.div_ceil(8))));
    assert!(row("`message`").contains(&format!("at most {MAX_ERROR_MESSAGE_LEN}")));
    assert!(DOCUMENT.contains("at most 1,024 bytes"));
    assert_eq!(MAX_STATUS_LEN, 1024);
}
