//! The demo: a robot, a compute server and everything between, fed with recorded grasps.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    moai_tests::demo::main().await
}
