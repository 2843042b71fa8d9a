//! The bytes of SEAL and `TenSEAL`.
//!
//! Invariants:
//! - Parsers never panic and never allocate more than the parameters allow; compressed data is
//!   decompressed only up to that.
//! - What is written is the dialect of SEAL 3.7, which every SEAL from 3.6 to 4.x reads; what is
//!   read may come from any of them.

pub(crate) mod ciphertext;
pub(crate) mod header;
pub(crate) mod keys;
pub(crate) mod pack;
pub(crate) mod parameters;
pub(crate) mod protobuf;
pub(crate) mod reader;
pub(crate) mod tenseal;
pub(crate) mod writer;
pub(crate) mod zlib;
pub(crate) mod zstd;
