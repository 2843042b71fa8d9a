//! The uplink protocol and the links that carry it.
//!
//! What travels between a robot and a compute server, and how: [`ids`] and [`topic`] name things,
//! [`frame`] wraps every message, [`message`] is what the frames hold, [`chunk`] moves a key of
//! many megabytes in resumable pieces, [`link`] is a connection to an MQTT 5 broker that comes
//! back by itself, [`tls`] makes its credentials, [`trust`] says who is a robot, [`keys`] sign for
//! sessions and servers.
//! `docs/protocol.md` specifies the bytes.
//!
//! Invariants:
//! - whatever comes from outside has a size cap, and its parser returns an error instead of
//!   panicking;
//! - delivery by MQTT is at least once at best: identifiers in the frames make repetition
//!   harmless, and nothing is taken for delivered before the other end has answered;
//! - only [`link`] does input and output.

pub mod chunk;
pub mod frame;
pub mod ids;
pub mod keys;
pub mod link;
pub mod message;
pub mod tls;
pub mod topic;
pub mod trust;

mod cbor;
