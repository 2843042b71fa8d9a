//! The other side of each custodian, as the test suite wants it.

use std::path::Path;

use anyhow::Result;
use moai_tests::moto::{self, Moto};
use moai_tests::softhsm::SoftHsm;
use moai_tests::swtpm::Swtpm;

/// What a custodian talks to.
pub(crate) trait Backend: Sized {
    /// What the error says when it is away.
    const AWAY: &str;
    /// Whether the agent waits for it to come back.
    const COMES_BACK: bool;

    /// Starts it.
    async fn start(directory: &Path) -> Result<Self>;
    /// Takes it away.
    async fn take_away(&mut self) -> Result<()>;
    /// The agent's configuration.
    fn toml(&self) -> String;
    /// What the environment must hold.
    fn environment(&self) -> Vec<(&'static str, String)>;
}

impl Backend for Swtpm {
    const AWAY: &str = "no TPM at swtpm:host=127.0.0.1,port=";
    const COMES_BACK: bool = true;

    async fn start(directory: &Path) -> Result<Self> {
        Self::start(directory).await
    }

    async fn take_away(&mut self) -> Result<()> {
        self.power_off().await
    }

    fn toml(&self) -> String {
        format!("custody.custodian = \"tpm\"\ntpm.tcti = {:?}\n", self.tcti())
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl Backend for SoftHsm {
    const AWAY: &str = "no token is labelled \"moai robot\" (there is no token at all)";
    const COMES_BACK: bool = true;

    async fn start(directory: &Path) -> Result<Self> {
        Self::make(directory).await
    }

    async fn take_away(&mut self) -> Result<()> {
        self.unplug()
    }

    fn toml(&self) -> String {
        format!("custody.custodian = \"pkcs11\"\n{}", Self::toml(self))
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![Self::environment(self)]
    }
}

impl Backend for Moto {
    const AWAY: &str = "AWS KMS is not reachable at http://127.0.0.1:";
    const COMES_BACK: bool = true;

    async fn start(directory: &Path) -> Result<Self> {
        Self::start(directory).await
    }

    async fn take_away(&mut self) -> Result<()> {
        self.stop().await
    }

    fn toml(&self) -> String {
        format!("custody.custodian = \"kms\"\n{}", Self::toml(self))
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        moto::ENVIRONMENT.map(|(key, value)| (key, value.to_owned())).to_vec()
    }
}

/// The development key.
pub(crate) struct Env(Option<String>);

impl Backend for Env {
    const AWAY: &str = "MOAI_DEVELOPMENT_KEY is not set";
    const COMES_BACK: bool = false;

    async fn start(_directory: &Path) -> Result<Self> {
        Ok(Self(Some("5a".repeat(32))))
    }

    async fn take_away(&mut self) -> Result<()> {
        self.0 = None;
        Ok(())
    }

    fn toml(&self) -> String {
        "custody.custodian = \"env\"\n".to_owned()
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        self.0.iter().map(|key| (moai_agent::custody::env::KEY_VARIABLE, key.clone())).collect()
    }
}
