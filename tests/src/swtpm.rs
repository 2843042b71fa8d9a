//! A software TPM as a process of its own.
//!
//! Invariants:
//! - the state directory is absolute and survives restarts: persistent handles and sealed objects
//!   work afterwards, PCRs are zero again, as after a reboot;
//! - the TPM serves one connection at a time: while somebody holds one open, the commands here wait
//!   and run into their deadline.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ports::Ports;
use crate::process::{Launch, Process, STEP, program};

/// A TPM 2.0 on two loopback ports.
#[derive(Debug)]
pub struct Swtpm {
    process: Option<Process>,
    ports: Ports,
    directory: PathBuf,
}

impl Swtpm {
    /// Starts a TPM whose state and logs live under `directory`.
    ///
    /// # Errors
    /// swtpm is not installed or does not come up.
    pub async fn start(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        let mut tpm = Self { process: None, ports: Ports::reserve()?, directory };
        tpm.power_on().await?;
        Ok(tpm)
    }

    /// The address as the agent's configuration and tpm2-tools want it.
    #[must_use]
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.ports.first())
    }

    /// The process.
    ///
    /// # Errors
    /// It is switched off.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the software TPM is switched off")
    }

    /// Starts the process again with the same state and ports.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn power_on(&mut self) -> Result<()> {
        let state = self.directory.join("state");
        std::fs::create_dir_all(&state)?;
        let [command_port, control_port] = [self.ports.first(), self.ports.second()];
        let process = Launch::new("swtpm", &program("swtpm")?, &self.directory.join("logs"))
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={},mode=0600", state.display())])
            .args(["--server", &format!("type=tcp,port={command_port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={control_port},bindaddr=127.0.0.1")])
            .spawn()?;
        crate::wait_for_port(&process, command_port).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process cleanly.
    ///
    /// # Errors
    /// It does not end.
    pub async fn power_off(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.terminate(STEP).await?;
        }
        Ok(())
    }

    /// Off and on again: state stays, PCRs are reset.
    ///
    /// # Errors
    /// It does not end or not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.power_off().await?;
        self.power_on().await
    }

    /// Puts another TPM in its place, one that knows nothing.
    ///
    /// # Errors
    /// It does not end or the other does not come up.
    pub async fn replace(&mut self) -> Result<()> {
        self.power_off().await?;
        std::fs::remove_dir_all(self.directory.join("state"))?;
        self.power_on().await
    }

    /// Kills the process, as if the chip were pulled.
    ///
    /// # Errors
    /// The kernel refuses the signal.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Extends a PCR of the SHA-256 bank with a digest (`TPM2_PCR_Extend`, TPM 2.0 part 3, 22.2).
    ///
    /// # Errors
    /// The TPM refuses, or somebody else holds the connection.
    pub async fn extend_pcr(&self, index: u32, digest: &[u8; 32]) -> Result<()> {
        let mut body = Vec::new();
        body.extend(0x0182_u32.to_be_bytes());
        body.extend(index.to_be_bytes());
        body.extend(9_u32.to_be_bytes());
        body.extend(0x4000_0009_u32.to_be_bytes()); // TPM_RS_PW: the empty password
        body.extend([0; 5]);
        body.extend(1_u32.to_be_bytes());
        body.extend(SHA256.to_be_bytes());
        body.extend(digest);
        self.command(SESSIONS, &body).await.map(drop)
    }

    /// Changes the owner's seed, so that every key below it is gone (`TPM2_Clear`, TPM 2.0 part 3,
    /// 24.6).
    ///
    /// # Errors
    /// The TPM refuses, or somebody else holds the connection.
    pub async fn clear(&self) -> Result<()> {
        self.command(SESSIONS, &lockout_command(0x0126, &[])).await.map(drop)
    }

    /// Puts the TPM into dictionary-attack lockout (`TPM2_DictionaryAttackParameters`, TPM 2.0
    /// part 3, 25.3): no failure at all is tolerated any more.
    ///
    /// # Errors
    /// The TPM refuses, or somebody else holds the connection.
    pub async fn lock_out(&self) -> Result<()> {
        self.command(SESSIONS, &dictionary_attack_parameters(0)).await.map(drop)
    }

    /// Puts the TPM into failure mode, where it stays until it is restarted: it cannot write its
    /// state.
    ///
    /// # Errors
    /// Somebody else holds the connection, or it did not fail.
    pub async fn fail(&self) -> Result<()> {
        const FAILURE: &str = "0x101";
        let (state, away) = (self.directory.join("state"), self.directory.join("away"));
        std::fs::rename(&state, &away)?;
        let refused = self.command(SESSIONS, &dictionary_attack_parameters(3)).await;
        std::fs::rename(&away, &state)?;
        let refused = refused.err().context("the TPM wrote a state that is not there")?;
        ensure!(refused.to_string().contains(FAILURE), "{refused:#}");
        Ok(())
    }

    /// Reads a PCR of the SHA-256 bank (`TPM2_PCR_Read`, TPM 2.0 part 3, 22.4).
    ///
    /// # Errors
    /// The TPM refuses, or somebody else holds the connection.
    pub async fn read_pcr(&self, index: u32) -> Result<[u8; 32]> {
        const NO_SESSIONS: u16 = 0x8001;
        ensure!(index < 24, "there are PCRs 0 to 23, not {index}");
        let mut body = Vec::new();
        body.extend(0x017e_u32.to_be_bytes());
        body.extend(1_u32.to_be_bytes());
        body.extend(SHA256.to_be_bytes());
        body.push(3);
        body.extend((1_u32 << index).to_le_bytes().into_iter().take(3));
        let answer = self.command(NO_SESSIONS, &body).await?;
        answer.last_chunk().copied().context("the TPM sent no PCR value")
    }

    async fn command(&self, tag: u16, body: &[u8]) -> Result<Vec<u8>> {
        const HEADER: usize = 6;
        const DEADLINE: Duration = Duration::from_secs(5);
        let process = self.process()?;
        let exchange = async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.first())).await?;
            let mut command = tag.to_be_bytes().to_vec();
            command.extend(u32::try_from(HEADER + body.len())?.to_be_bytes());
            command.extend(body);
            stream.write_all(&command).await?;
            let _tag = stream.read_u16().await?;
            let length = stream.read_u32().await?;
            let code = stream.read_u32().await?;
            ensure!(code == 0, "the TPM answers {code:#x}");
            ensure!((10..=4096).contains(&length), "the TPM's answer has {length} bytes");
            let mut answer = vec![0; usize::try_from(length)? - 10];
            stream.read_exact(&mut answer).await?;
            anyhow::Ok(answer)
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer,
            Err(_) => bail!(
                "no answer from the TPM within {DEADLINE:?}; is somebody else connected?\n{}",
                process.log().tail()
            ),
        }
    }
}

const SHA256: u16 = 0x000b;
const SESSIONS: u16 = 0x8002;

/// A command on the lockout hierarchy, with its empty password.
fn lockout_command(code: u32, parameters: &[u32]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(code.to_be_bytes());
    body.extend(0x4000_000a_u32.to_be_bytes()); // TPM_RH_LOCKOUT
    body.extend(9_u32.to_be_bytes());
    body.extend(0x4000_0009_u32.to_be_bytes()); // TPM_RS_PW: the empty password
    body.extend([0; 5]);
    body.extend(parameters.iter().flat_map(|parameter| parameter.to_be_bytes()));
    body
}

fn dictionary_attack_parameters(max_tries: u32) -> Vec<u8> {
    const SECONDS: u32 = 1000;
    lockout_command(0x013a, &[max_tries, SECONDS, SECONDS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_restart_resets_the_pcrs_on_the_same_port() {
        let scratch = tempfile::tempdir().unwrap();
        let mut tpm = Swtpm::start(scratch.path()).await.unwrap();
        let address = tpm.tcti();
        let fresh = tpm.read_pcr(7).await.unwrap();
        tpm.extend_pcr(7, &[1; 32]).await.unwrap();
        assert_ne!(tpm.read_pcr(7).await.unwrap(), fresh);
        assert_eq!(tpm.read_pcr(8).await.unwrap(), fresh);
        tpm.restart().await.unwrap();
        assert_eq!(tpm.read_pcr(7).await.unwrap(), fresh);
        tpm.kill().await.unwrap();
        assert!(tpm.read_pcr(7).await.is_err());
        tpm.power_on().await.unwrap();
        tpm.read_pcr(7).await.unwrap();
        assert_eq!(tpm.tcti(), address);
    }
}
