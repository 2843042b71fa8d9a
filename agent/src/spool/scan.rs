//! Reading the spool's file from its beginning to its end.
//!
//! Invariants:
//! - a record counts only if its CRC is right and its sequence number is larger than all before;
//! - where there is none, the search goes on byte by byte: damage costs the records it touches and
//!   no other;
//! - what comes after the last record is what a write that was cut off has left.

use std::io;

use super::record::{HEADER_LEN, Header, MARKER, Record};
use crate::disk::DiskFile;

/// How much is searched at a time.
const BLOCK_LEN: usize = 64 * 1024;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: usize,
}

impl Span {
    fn end(self) -> u64 {
        self.offset + self.len as u64
    }
}

/// What comes by.
pub(super) enum Found {
    /// A record, and where it lies.
    Record(Record, Span),
    /// Something that is none, before the record that comes next.
    Hole,
}

/// What a file turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Where the last record ends.
    pub(super) end: u64,
    /// Its sequence number; 0 without one.
    pub(super) sequence: u64,
    /// How many places have something else than records, with records behind.
    pub(super) holes: u64,
    /// There is something behind the last record.
    pub(super) is_torn: bool,
    /// The file begins like no spool, and has no record.
    pub(super) is_foreign: bool,
}

/// Hands every record to `take`, oldest first, and every hole between them.
///
/// # Errors
/// The operating system refuses to read.
pub(super) fn scan(file: &dyn DiskFile, take: &mut dyn FnMut(Found)) -> io::Result<Scanned> {
    let length = file.length()?;
    let mut scanned = Scanned::default();
    let mut at = 0;
    let mut is_in_hole = false;
    while at < length {
        if let Some((record, sequence, span)) = read(file, at, length, scanned.sequence)? {
            if std::mem::take(&mut is_in_hole) {
                scanned.holes += 1;
                take(Found::Hole);
            }
            (scanned.sequence, scanned.end) = (sequence, span.end());
            at = span.end();
            take(Found::Record(record, span));
        } else {
            is_in_hole = true;
            let Some(next) = find_marker(file, at + 1, length)? else { break };
            at = next;
        }
    }
    scanned.is_torn = scanned.end < length;
    if scanned.end == 0 && length > 0 {
        let mut start = vec![0; MARKER.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        file.read_at(&mut start, 0)?;
        scanned.is_foreign = !MARKER.starts_with(&start);
    }
    Ok(scanned)
}

/// The payload of the record there, if it is still as it was written.
///
/// # Errors
/// The operating system refuses to read.
pub(super) fn payload(file: &dyn DiskFile, span: Span) -> io::Result<Option<Vec<u8>>> {
    Ok(read_payload(file, span.offset, span.end())?.map(|(_, payload)| payload))
}

fn read(
    file: &dyn DiskFile,
    at: u64,
    length: u64,
    newest: u64,
) -> io::Result<Option<(Record, u64, Span)>> {
    let Some((header, payload)) = read_payload(file, at, length)? else { return Ok(None) };
    if header.sequence <= newest {
        return Ok(None);
    }
    let span = Span { offset: at, len: HEADER_LEN + payload.len() };
    Ok(Record::parse(&payload).map(|record| (record, header.sequence, span)))
}

fn read_payload(
    file: &dyn DiskFile,
    at: u64,
    length: u64,
) -> io::Result<Option<(Header, Vec<u8>)>> {
    let rest = length.saturating_sub(at);
    if rest < HEADER_LEN as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER_LEN];
    file.read_at(&mut header, at)?;
    let Some(header) = Header::parse(&header) else { return Ok(None) };
    if rest < (HEADER_LEN + header.payload_len) as u64 {
        return Ok(None);
    }
    let mut payload = vec![0; header.payload_len];
    file.read_at(&mut payload, at + HEADER_LEN as u64)?;
    Ok(header.fits(&payload).then_some((header, payload)))
}

fn find_marker(file: &dyn DiskFile, from: u64, length: u64) -> io::Result<Option<u64>> {
    let mut at = from;
    while length.saturating_sub(at) >= HEADER_LEN as u64 {
        let len = usize::try_from(length - at).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
        let mut block = vec![0; len];
        file.read_at(&mut block, at)?;
        if let Some(index) = block.windows(MARKER.len()).position(|bytes| bytes == MARKER) {
            return Ok(Some(at + index as u64));
        }
        // A marker may begin in this block and end in the next one.
        at += (len - (MARKER.len() - 1)) as u64;
    }
    Ok(None)
}
