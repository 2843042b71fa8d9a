//! The agent's parts. The binary `moai-agent` composes them; benches measure them.
//!
//! In the order data meets them: [`config`] · [`custody`] · [`identity`] · [`vault`] · [`session`] ·
//! [`onboard`] · [`window`] · [`spool`] · [`uplink`] · [`audit`] · [`daemon`] · [`control`].

pub mod audit;
pub mod cli;
pub mod clock;
pub mod conditions;
pub mod config;
pub mod control;
pub mod custody;
pub mod daemon;
pub mod desk;
pub mod disk;
pub mod echoes;
pub mod emergency;
pub mod engines;
pub mod failure;
pub mod feed;
pub mod feeds;
pub mod hardening;
pub mod health;
pub mod identity;
pub mod journals;
mod links;
pub mod live;
pub mod log;
pub mod onboard;
pub mod reload;
pub mod remote;
pub mod rotator;
pub mod secrets;
pub mod services;
pub mod session;
pub mod spool;
pub mod startup;
pub mod status;
pub mod status_table;
pub mod store;
pub mod task;
pub mod tasks;
pub mod throttle;
pub mod ttl;
pub mod uplink;
pub mod vault;
pub mod warm;
pub mod watchdog;
pub mod window;
