//! The harness of end-to-end tests, demo and benches: real processes on loopback.
//!
//! A [`World`] is everything one robot needs: a software TPM, the robot's own broker, the broker
//! of the uplink, a compute server and a provisioned agent, each a process of its own.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use moai_tests::World;
//!
//! let world = World::start().await?;
//! let onboard = &world.robot.onboard;
//! onboard.open("pick", "grasp").await?;
//! onboard.state("pick", "active").await?;
//! for _ in 0..15 {
//!     onboard.input("pick", &[-1, -1, 63, -3, -1, 0]).await?;
//! }
//! let result = onboard.result("pick").await?;
//! assert_eq!(result["label"], "normal");
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! - nothing outlives the value that started it, not even after a panic or `kill -9`;
//! - every wait has a deadline and its error shows the logs of the processes concerned;
//! - nothing listens beyond loopback; nothing is written outside the scratch directory but the empty
//!   lock files of [`ports`].

pub mod bench;
pub mod broker;
pub mod compute;
pub mod demo;
pub mod dump;
pub mod faults;
pub mod fleet;
pub mod inside;
pub mod log;
pub mod manual;
pub mod moto;
pub mod mqtt;
pub mod onboard;
pub mod peek;
pub mod pki;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod python;
pub mod recordings;
pub mod redis;
pub mod reference;
pub mod robot;
pub mod scan;
pub mod settings;
pub mod softhsm;
pub mod stream;
pub mod swtpm;
pub mod tenseal;
pub mod tiny;
pub mod vm;
pub mod world;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
pub use world::World;

/// The root of the source tree.
#[must_use]
pub fn repository() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// Waits until `process` accepts connections on a loopback port.
async fn wait_for_port(process: &process::Process, port: u16) -> Result<()> {
    let accepted = async {
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            if process.exit().is_some() {
                return false;
            }
            // Nothing announces a listening socket, so it has to be tried.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    };
    let name = process.log().name();
    match tokio::time::timeout(process::STEP, accepted).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            bail!("{name} ended without listening on port {port}\n{}", process.log().tail())
        }
        Err(_) => bail!("{name} does not listen on port {port}\n{}", process.log().tail()),
    }
}
