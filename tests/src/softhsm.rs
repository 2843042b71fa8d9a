//! A PKCS #11 token in software: `SoftHSM` 2, a library that the agent loads.
//!
//! Invariant: the token lies in a directory of its own; whoever uses it needs
//! [`SoftHsm::environment`] when it starts, because the library looks nowhere else.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{Launch, STEP, program};
use crate::settings::quoted;

/// The token's label.
pub const LABEL: &str = "moai robot";
/// The PIN of the token's user.
pub const PIN: &str = "1234";
const OFFICER_PIN: &str = "87654321";

/// Where distributions put the library.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// A token and the file with its PIN.
#[derive(Debug)]
pub struct SoftHsm {
    directory: PathBuf,
    module: &'static str,
}

impl SoftHsm {
    /// Makes a token whose objects live under `directory`.
    ///
    /// # Errors
    /// `SoftHSM` is not installed or fails.
    pub async fn make(directory: &Path) -> Result<Self> {
        let module = MODULES.into_iter().find(|path| Path::new(path).exists());
        let module = module.context("SoftHSM is not installed; run `cargo xtask setup`")?;
        fs::create_dir_all(directory.join("tokens"))?;
        let token = Self { directory: directory.canonicalize()?, module };
        let tokens = token.tokens();
        fs::write(
            token.configuration(),
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display()),
        )?;
        token.write_pin(PIN)?;
        let (variable, configuration) = token.environment();
        Launch::new("softhsm2-util", &program("softhsm2-util")?, &token.directory.join("logs"))
            .args(["--init-token", "--free", "--label", LABEL])
            .args(["--pin", PIN, "--so-pin", OFFICER_PIN])
            .env(variable, configuration)
            .run(STEP)
            .await?
            .success()?;
        Ok(token)
    }

    /// What the environment of a process that loads the library must hold.
    #[must_use]
    pub fn environment(&self) -> (&'static str, String) {
        ("SOFTHSM2_CONF", self.configuration().to_string_lossy().into_owned())
    }

    /// The section `[pkcs11]` of an agent that uses the token.
    #[must_use]
    pub fn toml(&self) -> String {
        let pin_file = quoted(&self.pin_file());
        let module = self.module;
        format!("[pkcs11]\nmodule = {module:?}\ntoken = {LABEL:?}\npin_file = {pin_file}\n")
    }

    /// Writes another PIN to the PIN file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pin(&self, pin: &str) -> Result<()> {
        fs::write(self.pin_file(), format!("{pin}\n"))?;
        Ok(fs::set_permissions(self.pin_file(), Permissions::from_mode(0o600))?)
    }

    /// Takes the token away: processes that start from now on find none.
    ///
    /// # Errors
    /// It is away already.
    pub fn unplug(&self) -> Result<()> {
        fs::rename(self.tokens(), self.directory.join("unplugged"))?;
        Ok(fs::create_dir(self.tokens())?)
    }

    /// Brings the token back.
    ///
    /// # Errors
    /// It is not away.
    pub fn plug_in(&self) -> Result<()> {
        fs::remove_dir(self.tokens())?;
        Ok(fs::rename(self.directory.join("unplugged"), self.tokens())?)
    }

    fn tokens(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("softhsm2.conf")
    }

    fn pin_file(&self) -> PathBuf {
        self.directory.join("pin")
    }
}
