//! End to end: the built binaries with a real software TPM and real brokers.
//!
//! One binary for all of it, because linking it takes long. No test sleeps: each waits for events.

mod configuration;
mod expiry;
mod main_job;
mod malformed;
mod models;
mod outages;
mod refusals;
mod restarts;
mod secrecy;
mod stage;
mod supervision;
