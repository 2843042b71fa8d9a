//! One record of the spool's file.
//!
//! Layout, integers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `MSP`, then the version, 1 |
//! | 4 | 4 | length of the payload |
//! | 8 | 8 | sequence number, larger than that of every record before |
//! | 16 | 4 | CRC-32 (ISO-HDLC) of bytes 4 to 15 and of the payload |
//! | 20 | … | payload: kind (1), then what the kind has, see [`Record`] |
//!
//! Invariant: bytes that are no record are no record; parsing never panics.

use crc32fast::Hasher;
use moai_transport::frame::FrameKind;
use moai_transport::ids::{JobNumber, SessionId, TaskId};

use super::Era;
use crate::clock::BootInstant;

pub(super) const MARKER: [u8; 4] = *b"MSP\x01";
pub(super) const HEADER_LEN: usize = 20;
/// Everything of a payload but a job's body, at most: kind, session, numbers, and a task's id.
const MAX_FACTS_LEN: usize = 512;

const OPENED: u8 = 1;
const JOB: u8 = 2;
const REMOVED: u8 = 3;
const FORGOTTEN: u8 = 4;
const NUMBERS: u8 = 5;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// An agent opened the file: era (8), boot (text).
    Opened { era: Era, boot: String },
    /// A job was accepted: session (16), number (8), acceptance (8), length of the samples (4), length
    /// of the task's id (1), that id, body.
    Job(Job),
    /// It ended: session (16), number (8).
    Removed { session: SessionId, number: JobNumber },
    /// Every job of a session ended, and so does its numbering: session (16).
    Forgotten { session: SessionId },
    /// The newest number of a session, from a file before this one: session (16), number (8).
    Numbers { session: SessionId, newest: JobNumber },
}

/// An accepted job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) session: SessionId,
    pub(super) number: JobNumber,
    pub(super) task: TaskId,
    pub(super) accepted: BootInstant,
    pub(super) plain_len: u32,
    pub(super) body: Vec<u8>,
}

/// The longest payload there is.
pub(super) fn max_payload_len() -> usize {
    FrameKind::Job.max_body_len() + MAX_FACTS_LEN
}

/// What stands before a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) payload_len: usize,
    pub(super) sequence: u64,
    crc: u32,
}

impl Header {
    /// `None` if no record begins with these bytes.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let (marker, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let payload_len = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let is_record = *marker == MARKER && payload_len <= max_payload_len();
        is_record.then_some(Self {
            payload_len,
            sequence: u64::from_le_bytes(*sequence),
            crc: u32::from_le_bytes(rest.try_into().ok()?),
        })
    }

    /// Whether header and payload are as they were written.
    pub(super) fn fits(&self, payload: &[u8]) -> bool {
        u32::try_from(payload.len()).is_ok_and(|len| crc(len, self.sequence, payload) == self.crc)
    }
}

fn crc(payload_len: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&payload_len.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Adds a record with this payload; returns its length. A payload is at most
/// [`max_payload_len`] long.
pub(super) fn frame(payload: &[u8], sequence: u64, bytes: &mut Vec<u8>) -> usize {
    let payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&MARKER);
    bytes.extend_from_slice(&payload_len.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&crc(payload_len, sequence, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    HEADER_LEN + payload.len()
}

impl Record {
    /// How many bytes it takes in the file.
    pub(super) fn len(&self) -> usize {
        HEADER_LEN + self.payload().len()
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Opened { era, boot } => {
                bytes.push(OPENED);
                bytes.extend_from_slice(&era.0.to_le_bytes());
                bytes.extend_from_slice(boot.as_bytes());
            }
            Self::Job(job) => {
                let task = job.task.as_str().as_bytes();
                bytes.push(JOB);
                bytes.extend_from_slice(job.session.as_bytes());
                bytes.extend_from_slice(&job.number.0.to_le_bytes());
                bytes.extend_from_slice(&job.accepted.0.to_le_bytes());
                bytes.extend_from_slice(&job.plain_len.to_le_bytes());
                // A task's id has at most 64 characters.
                bytes.push(u8::try_from(task.len()).unwrap_or(u8::MAX));
                bytes.extend_from_slice(task);
                bytes.extend_from_slice(&job.body);
            }
            Self::Removed { session, number } => add_number(REMOVED, session, *number, &mut bytes),
            Self::Numbers { session, newest } => add_number(NUMBERS, session, *newest, &mut bytes),
            Self::Forgotten { session } => {
                bytes.push(FORGOTTEN);
                bytes.extend_from_slice(session.as_bytes());
            }
        }
        bytes
    }

    /// `None` if it is no payload of this version.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (kind, rest) = payload.split_first()?;
        if *kind == OPENED {
            let (era, boot) = rest.split_first_chunk()?;
            let boot = String::from_utf8(boot.to_vec()).ok()?;
            return Some(Self::Opened { era: Era(u64::from_le_bytes(*era)), boot });
        }
        let (session, rest) = rest.split_first_chunk()?;
        let session = SessionId::from_bytes(*session)?;
        match *kind {
            JOB => {
                let (number, rest) = rest.split_first_chunk()?;
                let (accepted, rest) = rest.split_first_chunk()?;
                let (plain_len, rest) = rest.split_first_chunk()?;
                let (task_len, rest) = rest.split_first()?;
                let (task, body) = rest.split_at_checked(usize::from(*task_len))?;
                Some(Self::Job(Job {
                    session,
                    number: JobNumber(u64::from_le_bytes(*number)),
                    task: std::str::from_utf8(task).ok()?.parse().ok()?,
                    accepted: BootInstant(u64::from_le_bytes(*accepted)),
                    plain_len: u32::from_le_bytes(*plain_len),
                    body: body.to_vec(),
                }))
            }
            REMOVED => Some(Self::Removed { session, number: parse_number(rest)? }),
            NUMBERS => Some(Self::Numbers { session, newest: parse_number(rest)? }),
            FORGOTTEN => rest.is_empty().then_some(Self::Forgotten { session }),
            _ => None,
        }
    }
}

fn add_number(kind: u8, session: &SessionId, number: JobNumber, bytes: &mut Vec<u8>) {
    bytes.push(kind);
    bytes.extend_from_slice(session.as_bytes());
    bytes.extend_from_slice(&number.0.to_le_bytes());
}

fn parse_number(bytes: &[u8]) -> Option<JobNumber> {
    Some(JobNumber(u64::from_le_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let session = SessionId::new(1, [2; 10]);
        let job = Job {
            session: session.clone(),
            number: JobNumber(1 << 40),
            task: "arm".parse().unwrap(),
            accepted: BootInstant(3),
            plain_len: 4,
            body: vec![5; 6],
        };
        let records = [
            Record::Job(job),
            Record::Removed { session: session.clone(), number: JobNumber(7) },
            Record::Forgotten { session: session.clone() },
            Record::Numbers { session, newest: JobNumber(8) },
            Record::Opened { era: Era(10), boot: "boot".to_owned() },
        ];
        for record in records {
            let mut bytes = Vec::new();
            let length = frame(&record.payload(), 9, &mut bytes);
            assert_eq!((length, bytes.len()), (record.len(), record.len()));
            let (header, payload) = bytes.split_first_chunk().unwrap();
            let header = Header::parse(header).unwrap();
            assert_eq!((header.sequence, header.payload_len), (9, payload.len()));
            assert!(header.fits(payload));
            assert_eq!(Record::parse(payload), Some(record));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Record::parse(&bytes);
            if let Some(header) = bytes.first_chunk() {
                let _ = Header::parse(header);
            }
        }
    }
}
