//! Many robots on one broker and one server, for the fleet bench: real transport and real sessions,
//! a scheme that costs nothing.
//!
//! A robot is the agent's own parts (tasks, sessions, vault, spool, audit log, uplink) without TPM
//! and without an onboard broker: onboard software is at the other end of a link in memory. The
//! server is `moai-server`'s own service. Both use an engine whose keys are a few bytes, so that what
//! is measured is everything but the scheme.
//!
//! Invariants:
//! - robots and server are processes of their own, so that each has its own CPU time and memory;
//! - every answer is checked against its window: a fleet that mixes robots up is found out.

pub mod engine;
pub mod onboard;
pub mod plan;
pub mod process;
pub mod robot;
pub mod robots;
pub mod server;
