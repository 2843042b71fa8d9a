//! Tests of the transport through its public surface: pure parts against arbitrary input, links
//! against a real broker with mutual TLS.

mod chunks;
mod frames;
mod hostile;
mod links;
mod messages;
mod names;
mod outages;
mod support;
mod transfer;
