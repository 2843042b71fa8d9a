//! The baselines of unsealing: tpm2-tools and systemd-creds on the same software TPM.
//!
//! Invariants:
//! - each keeps the same 32 bytes under PCR 7 of the SHA-256 bank, with nothing else to satisfy;
//! - a baseline that is not installed, or does not work with this TPM, says so and is left out.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use moai_tpm::SRK_HANDLE;

use crate::process::program;

/// A persistent handle of the owner's range that neither the storage root key nor an epoch has.
const HANDLE: &str = "0x81000042";
const POLICY: &str = "pcr:sha256:7";

/// A secret kept by tpm2-tools as a persistent object.
pub(super) struct Tpm2Tools {
    tcti: String,
    session: String,
}

impl Tpm2Tools {
    /// Seals `secret`.
    ///
    /// # Errors
    /// The tools are not installed, or one of them fails.
    pub(super) fn seal(tcti: &str, directory: &Path, secret: &[u8]) -> Result<Self> {
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let tools = Self { tcti: tcti.to_owned(), session: path("session.ctx") };
        let [parent, policy, input, public, private, object] =
            ["parent.ctx", "policy", "input", "public", "private", "object.ctx"].map(path);
        std::fs::write(&input, secret)?;
        for (name, arguments) in [
            ("tpm2_createprimary", vec!["-C", "o", "-G", "ecc", "-c", &parent]),
            ("tpm2_createpolicy", vec!["--policy-pcr", "-l", "sha256:7", "-L", &policy]),
            (
                "tpm2_create",
                vec!["-C", &parent, "-L", &policy, "-i", &input, "-u", &public, "-r", &private],
            ),
            ("tpm2_flushcontext", vec!["-t"]),
            ("tpm2_load", vec!["-C", &parent, "-u", &public, "-r", &private, "-c", &object]),
            ("tpm2_evictcontrol", vec!["-C", "o", "-c", &object, HANDLE]),
            ("tpm2_flushcontext", vec!["-t"]),
        ] {
            tools.call(name, &arguments)?;
        }
        Ok(tools)
    }

    /// Unseals with one command, which sends the secret over the bus in the clear.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn unseal_in_the_clear(&self) -> Result<Vec<u8>> {
        self.call("tpm2_unseal", &["-c", HANDLE, "-p", POLICY])
    }

    /// Unseals in a session that is salted to the storage root key and encrypts parameters.
    ///
    /// # Errors
    /// A command fails.
    pub(super) fn unseal_salted(&self) -> Result<Vec<u8>> {
        let key = format!("{SRK_HANDLE:#x}");
        let session = self.session.as_str();
        let start = ["--policy-session", "--tpmkey-context", &key, "-S", session];
        self.call("tpm2_startauthsession", &start)?;
        self.call("tpm2_sessionconfig", &["--enable-encrypt", "--enable-decrypt", session])?;
        self.call("tpm2_policypcr", &["-S", session, "-l", "sha256:7"])?;
        let policy = format!("session:{session}");
        let secret = self.call("tpm2_unseal", &["-c", HANDLE, "-p", &policy])?;
        self.call("tpm2_flushcontext", &[session])?;
        Ok(secret)
    }

    fn call(&self, name: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        output(Command::new(program(name)?).args(arguments).env("TPM2TOOLS_TCTI", &self.tcti))
    }
}

/// A secret kept by systemd-creds as a credential file.
pub(super) struct SystemdCreds {
    tcti: String,
    file: PathBuf,
}

impl SystemdCreds {
    /// Seals `secret`.
    ///
    /// # Errors
    /// systemd-creds is not installed, or was built without TPM support.
    pub(super) fn seal(tcti: &str, directory: &Path, secret: &[u8]) -> Result<Self> {
        let creds = Self { tcti: tcti.to_owned(), file: directory.join("root.cred") };
        let input = directory.join("plain");
        std::fs::write(&input, secret)?;
        let options = ["--with-key=tpm2", "--tpm2-pcrs=7"].map(OsStr::new);
        creds.call("encrypt", &options, [input.as_os_str(), creds.file.as_os_str()])?;
        Ok(creds)
    }

    /// Unseals.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn unseal(&self) -> Result<Vec<u8>> {
        self.call("decrypt", &[], [self.file.as_os_str(), OsStr::new("-")])
    }

    fn call(&self, verb: &str, options: &[&OsStr], files: [&OsStr; 2]) -> Result<Vec<u8>> {
        let device = format!("--tpm2-device={}", self.tcti);
        output(
            Command::new(program("systemd-creds")?)
                .args([verb, "--name=root", &device])
                .args(options)
                .args(files),
        )
    }
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}
