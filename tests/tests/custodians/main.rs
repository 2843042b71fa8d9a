//! Every custodian with the same tests: a TPM (swtpm), a PKCS #11 token (`SoftHSM`), AWS KMS (moto)
//! and the development key; and what only one of them has.
//!
//! What a custodian finds depends on the environment of its process, and a test may not change its
//! own. So each test starts the other side, then itself once more as a process with the right
//! environment, which asks the custodian.

mod backends;
mod kms;
mod pkcs11;
mod suite;

use std::path::Path;

use anyhow::{Context, Result};
use moai_agent::config::Config;
use moai_tests::process::{Launch, STEP};

/// Set in the inner process: the agent's configuration file.
const CONFIG: &str = "MOAI_TEST_CONFIG";

/// What the inner process does.
type Inner = fn(&Config) -> Result<()>;

/// Runs `inner` if this is the inner process, and tells whether it was.
async fn is_inner(inner: Inner) -> Result<bool> {
    let Some(path) = std::env::var_os(CONFIG) else { return Ok(false) };
    let config = Config::load(Path::new(&path))?;
    // Custodians block.
    tokio::task::spawn_blocking(move || inner(&config)).await??;
    Ok(true)
}

/// Starts the test called `name` again, with a configuration and an environment.
async fn again(
    name: &str,
    directory: &Path,
    toml: &str,
    environment: &[(&str, String)],
) -> Result<()> {
    let path = directory.join("agent.toml");
    let head = "identity = \"acme.robot-1\"\ndevelopment = true\nuplink.host = \"localhost\"\n";
    std::fs::write(&path, format!("{head}{toml}"))?;
    let launch = Launch::new("inner", &std::env::current_exe()?, directory)
        .args(["--exact", "--nocapture", name])
        .env(CONFIG, &path);
    let launch = environment.iter().fold(launch, |launch, (key, value)| launch.env(key, value));
    let log = launch.run(4 * STEP).await?.success()?;
    // A name that fits no test would be a success too.
    log.lines().iter().find(|line| line.contains("1 passed")).context("no test ran").map(drop)
}
