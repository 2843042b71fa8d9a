//! Whether the log is what the agent wrote.
//!
//! Invariants:
//! - a line counts only if its MAC is right; everything else about it is read after that;
//! - whatever was removed, changed, swapped or put in is named by file and line, or by the sequence
//!   numbers that are missing;
//! - entries after the newest one that the vault knows of are accepted: the power may have gone
//!   between the two.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::line::{self, LineHash, Link};
use super::seal::AuditSeal;

/// More findings are counted, not listed.
const MAX_FINDINGS: usize = 100;

/// What verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// How many entries are as the agent wrote them, where it wrote them.
    pub entries: u64,
    /// Sequence numbers of the oldest and the newest of them.
    pub span: Option<(u64, u64)>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more_findings: u64,
    /// Whether the last line was cut off while it was written, which happens when the power goes.
    pub is_torn: bool,
}

/// Something that the agent did not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// A line without a right MAC.
    NotAuthentic {
        /// Its file.
        file: String,
        /// Its number in the file, from 1.
        line: u64,
    },
    /// An entry that is not where it belongs: swapped, repeated, or put back from an older copy.
    OutOfPlace {
        /// Its file.
        file: String,
        /// Its number in the file, from 1.
        line: u64,
        /// Its sequence number.
        sequence: u64,
    },
    /// Entries that are not where they belong, or changed beyond recognition.
    Missing {
        /// The first sequence number.
        from: u64,
        /// The last.
        to: u64,
    },
}

impl AuditReport {
    /// Whether everything is as the agent wrote it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthentic { file, line } => {
                write!(f, "{file}, line {line}: changed, or not written by this agent")
            }
            Self::OutOfPlace { file, line, sequence } => {
                write!(f, "{file}, line {line}: entry {sequence} does not belong there")
            }
            Self::Missing { from, to } if from == to => write!(f, "entry {from} is missing"),
            Self::Missing { from, to } => write!(f, "entries {from} to {to} are missing"),
        }
    }
}

/// Walks the lines of all files, oldest first.
pub(super) struct Verifier<'a> {
    seal: &'a AuditSeal,
    expected: u64,
    previous: Option<LineHash>,
    report: AuditReport,
}

/// An entry in its place.
pub(super) struct Placed {
    pub(super) sequence: u64,
    pub(super) hash: LineHash,
}

impl<'a> Verifier<'a> {
    /// Begins with the oldest entry that must be there.
    pub(super) fn new(seal: &'a AuditSeal) -> Self {
        let previous = (seal.oldest == 1).then_some(LineHash::NONE);
        Self { seal, expected: seal.oldest, previous, report: AuditReport::default() }
    }

    /// Begins with whatever entry comes first, for a look at the end of the log only.
    pub(super) fn anywhere(seal: &'a AuditSeal) -> Self {
        Self { expected: 0, previous: None, ..Self::new(seal) }
    }

    /// Takes the next line, without its line feed.
    pub(super) fn line(&mut self, file: &str, number: u64, text: &[u8]) -> Option<Placed> {
        let Some(Link { sequence, previous }) = self.authentic(text) else {
            self.find(Finding::NotAuthentic { file: file.to_owned(), line: number });
            return None;
        };
        if self.expected == 0 {
            self.expected = sequence;
        }
        let is_older = sequence < self.expected && sequence < self.seal.oldest;
        if is_older && self.report.span.is_none() {
            // The power went while files that are not kept were removed.
            return None;
        }
        let continues = sequence == self.expected && self.previous.is_none_or(|it| it == previous);
        let is_fork = sequence == self.seal.newest && LineHash::of(text) != self.seal.hash;
        if sequence < self.expected || (sequence == self.expected && !continues) || is_fork {
            self.find(Finding::OutOfPlace { file: file.to_owned(), line: number, sequence });
            return None;
        }
        if sequence > self.expected {
            self.find(Finding::Missing { from: self.expected, to: sequence - 1 });
        }
        let hash = LineHash::of(text);
        self.expected = sequence + 1;
        self.previous = Some(hash);
        self.report.entries += 1;
        let (first, _) = self.report.span.unwrap_or((sequence, sequence));
        self.report.span = Some((first, sequence));
        Some(Placed { sequence, hash })
    }

    /// The last line has no end.
    pub(super) fn torn(&mut self) {
        self.report.is_torn = true;
    }

    /// There are no more lines.
    pub(super) fn end(mut self) -> AuditReport {
        if self.expected <= self.seal.newest {
            self.find(Finding::Missing { from: self.expected, to: self.seal.newest });
        }
        self.report
    }

    fn authentic(&self, text: &[u8]) -> Option<Link> {
        let keys = self.seal.keys();
        // Most lines have the key of the line before.
        let likely = keys.iter().rposition(|key| key.first <= self.expected).unwrap_or(0);
        let order = keys[likely..].iter().chain(&keys[..likely]);
        let key = order.into_iter().find(|it| line::is_authentic(&it.key, text))?;
        let link = line::parse(text)?;
        let after = keys.iter().find(|other| other.first > key.first).map(|other| other.first);
        let is_in_epoch = key.first <= link.sequence && after.is_none_or(|it| link.sequence < it);
        is_in_epoch.then_some(link)
    }

    fn find(&mut self, finding: Finding) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(finding);
        } else {
            self.report.more_findings += 1;
        }
    }
}
