//! The commands about the root secret.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use moai_tpm::{Measurements, RecoveryCode};
use zeroize::Zeroizing;

use super::arguments::{Provision, Recover};
use super::{identity, print};
use crate::config::{Config, CustodianConfig, EscrowConfig};
use crate::custody::files::read_capped;
use crate::custody::{self, Extras, Provisioned, escrow};

/// No recovery code that a person types is longer.
const MAX_CODE_LEN: u64 = 256;

pub(super) fn provision(config: &Config, arguments: &Provision) -> Result<()> {
    let state = &config.state_directory;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("cannot make {}", state.display()))?;
    // A provisioned robot is refused below, before anything is said.
    if !state.join(custody::ROOT_FILE).exists() {
        identity::prepare(config)?;
    }
    let has_codes = matches!(config.custody.custodian, CustodianConfig::Tpm);
    let recovery_code = has_codes && !arguments.no_recovery_code;
    let extras = Extras { recovery_code, escrow: arguments.escrow };
    let done = custody::provision(config, extras)?;
    println!(
        "The root secret of {} is sealed in {}, epoch {}, and it unseals.",
        config.identity,
        done.path.display(),
        done.epoch
    );
    report(&done);
    if arguments.escrow {
        let copy = config.state_directory.join(escrow::ESCROW_FILE);
        println!("An escrow lies in {}: keep a copy off the robot.", copy.display());
    }
    identity::certify(config, arguments.ca.as_deref().zip(arguments.ca_key.as_deref()))?;
    println!("\nNext: systemctl start moai-agent, or moai-agent run.");
    Ok(())
}

pub(super) fn reseal(config: &Arc<Config>, new_recovery_code: bool) -> Result<()> {
    let done = custody::reseal(config, new_recovery_code)?;
    println!("The root secret is sealed anew in {}.", done.path.display());
    report(&done);
    Ok(())
}

pub(super) fn recover(config: &Arc<Config>, arguments: &Recover) -> Result<()> {
    let done = match &arguments.from_escrow {
        None => custody::recover(config, &ask_for_code()?)?,
        Some(file) => {
            let copy =
                read_capped(file, escrow::MAX_ESCROW_LEN).with_context(|| cannot_read(file))?;
            let (epoch, root) = match (&arguments.escrow_key, &config.custody.escrow) {
                (Some(key), _) => {
                    let key = escrow::read_key_file(key)?;
                    escrow::open_with_key(&copy, &config.identity, &key)?
                }
                (None, Some(EscrowConfig::Kms(kms))) => {
                    escrow::open_with_kms(&copy, &config.identity, kms)?
                }
                (None, _) => anyhow::bail!(
                    "give the private key with --escrow-key, or name the key management service \
                     in the sections [escrow] and [kms]"
                ),
            };
            custody::recover_with_root(config, epoch, &root)?
        }
    };
    println!("The root secret is recovered and sealed to this machine as it is now.");
    report(&done);
    println!("Next: systemctl start moai-agent, or moai-agent run.");
    Ok(())
}

pub(super) fn show_policy(config: &Config) -> Result<()> {
    print(&custody::show_policy(config)?.to_string())
}

/// Signs without a configuration: the policy key is not on a robot.
pub(super) fn sign_policy(key: &Path, measurements: &str, out: Option<&Path>) -> Result<()> {
    let measurements: Measurements = measurements.parse().context("--measurements")?;
    let policy = moai_tpm::sign_policy(&escrow::read_key_file(key)?, &measurements)?;
    let text = policy.to_json();
    match out {
        Some(path) => {
            std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            println!(
                "{} is signed: install it in /etc/moai-agent/policies.d together with the firmware \
                 it is for.",
                path.display()
            );
            Ok(())
        }
        None => print(&text),
    }
}

pub(super) fn make_escrow_keys(out: &Path) -> Result<()> {
    let keys = escrow::generate_keys()?;
    let mut public = out.as_os_str().to_owned();
    public.push(".pub");
    let public = Path::new(&public);
    write_new(out, 0o600, keys.private_pem.as_bytes())?;
    write_new(public, 0o644, keys.public_pem.as_bytes())?;
    println!(
        "Private key: {} (keep it offline, in a safe).\n\
         Public key:  {} ({}): install it on the robots and name it as `escrow.recipient`.",
        out.display(),
        public.display(),
        keys.fingerprint
    );
    Ok(())
}

/// Writes a file that must not exist yet: a key is not replaced by accident.
fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Says what a sealing has to be known of, the recovery code among it.
fn report(done: &Provisioned) {
    println!("It opens to {}.", done.bound_to);
    if let Some(warning) = &done.warning {
        eprintln!("moai-agent: warning: {warning}");
    }
    if let Some(code) = &done.recovery_code {
        println!(
            "\nRecovery code, shown this once. Whoever has it and this robot can open the root \
             secret whatever the boot state: keep it off the robot.\n\n    {}\n",
            code.as_str()
        );
    }
}

fn ask_for_code() -> Result<RecoveryCode> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprint!("Recovery code: ");
        std::io::stderr().flush()?;
    }
    let mut text = Zeroizing::new(String::new());
    stdin.lock().take(MAX_CODE_LEN).read_line(&mut text)?;
    text.trim().parse().context("that is not the recovery code")
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}
