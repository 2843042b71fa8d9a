//! The commands about the robot's identity.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::arguments::Identity;
use super::print;
use crate::config::{Config, IdentityKeySource};
use crate::custody;
use crate::identity::{IdentityKey, certificate, csr, enrolment};

/// How long a certificate for tests is valid.
const TEST_CERTIFICATE_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// No chain of certificates for a robot comes near it.
const MAX_CHAIN_LEN: u64 = 64 * 1024;

pub(super) fn run(config: &Config, command: &Identity) -> Result<()> {
    match command {
        Identity::Csr => {
            // A board that was exchanged needs a new key, and only this command to make it.
            let key = IdentityKey::open_or_create(config, || custody::connect(&config.tpm))?;
            print(&csr::request(&config.identity, &key)?)
        }
        Identity::Install { chain } => install(config, &read(chain)?),
        Identity::Enrolment => print(&enrolment::enrolment(config)?),
    }
}

/// Makes the identity key if there is none.
pub(super) fn prepare(config: &Config) -> Result<()> {
    IdentityKey::open_or_create(config, || custody::connect(&config.tpm))?;
    match &config.uplink.key {
        IdentityKeySource::Tpm => println!("The identity key is in the TPM and cannot leave it."),
        IdentityKeySource::File(path) => println!(
            "DEVELOPMENT ONLY: the identity key is a file that anybody can copy: {}",
            path.display()
        ),
    }
    Ok(())
}

/// Has the identity key certified, or says how.
pub(super) fn certify(config: &Config, authority: Option<(&Path, &Path)>) -> Result<()> {
    let key = open(config)?;
    let Some((ca, ca_key)) = authority else {
        println!(
            "Have your authority sign this request, then give its answer to \
             `moai-agent identity install`:\n"
        );
        return print(&csr::request(&config.identity, &key)?);
    };
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (ca, ca_key) = (read(ca)?, read(ca_key)?);
    let lifetime = TEST_CERTIFICATE_LIFETIME;
    let chain = csr::grant(&config.identity, &key, ca.as_bytes(), &ca_key, now(), lifetime)?;
    let facts = certificate::install(config, chain.as_bytes(), now())?;
    println!(
        "FOR TESTS: the certificate of {} was signed here, with the authority's own key; it lies \
         in {}.",
        facts.common_name,
        config.uplink.certificate.display()
    );
    Ok(())
}

fn open(config: &Config) -> Result<IdentityKey> {
    Ok(IdentityKey::open(config, || custody::connect(&config.tpm))?)
}

fn install(config: &Config, chain: &[u8]) -> Result<()> {
    let facts = certificate::install(config, chain, now())?;
    println!(
        "The certificate of {} is installed in {}. A running agent notices it by itself.",
        facts.common_name,
        config.uplink.certificate.display()
    );
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_CHAIN_LEN).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_CHAIN_LEN).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
