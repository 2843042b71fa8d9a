//! End to end: the built binaries with a real software TPM and real brokers.
//!
//! One binary for all of it, because linking it takes long. No test sleeps: each waits for events.

mod attestation;
mod audit;
mod chart;
mod ckks;
mod configuration;
mod custodians;
mod custody;
mod declared;
mod dishonest;
mod expiry;
mod faults;
mod identity;
mod journal;
mod lifecycle;
mod main_job;
mod malformed;
mod memory;
mod models;
mod outages;
mod played;
mod refusals;
mod reload;
mod remote;
mod restarts;
mod secrecy;
mod service;
mod spool;
mod stage;
mod stream;
mod supervision;
mod tenants;
mod tenseal;
mod workers;
