//! What only a PKCS #11 token has: a PIN, and room for several robots.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, bail, ensure};
use moai_agent::config::{Config, CustodianConfig, Pkcs11Config};
use moai_agent::custody::pkcs11::{Pkcs11Custodian, Pkcs11Error};
use moai_agent::custody::{self, Custodian, CustodyError};
use moai_tests::softhsm::{LABEL, SoftHsm};
use moai_tpm::{Epoch, RootSecret};

use crate::{Inner, again, is_inner};

const FIRST: Epoch = Epoch(1);

async fn with_token(name: &str, inner: Inner) -> Result<()> {
    if is_inner(inner).await? {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let token = SoftHsm::make(scratch.path()).await?;
    let name = format!("pkcs11::{name}");
    let toml = format!("custody.custodian = \"pkcs11\"\n{}", token.toml());
    again(&name, scratch.path(), &toml, &[token.environment()]).await
}

fn settings(config: &Config) -> Result<&Pkcs11Config> {
    match &config.custody.custodian {
        CustodianConfig::Pkcs11(settings) => Ok(settings),
        _ => bail!("the configuration names another custodian"),
    }
}

fn custodian(settings: Pkcs11Config, robot: &str) -> Result<Pkcs11Custodian> {
    Ok(Pkcs11Custodian::new(settings, robot.parse()?))
}

fn root(byte: u8) -> RootSecret {
    RootSecret::from_bytes([byte; 32])
}

/// The error of a call that must fail, which the agent must not repeat by itself.
fn refusal<T>(result: Result<T, CustodyError>) -> Result<Pkcs11Error> {
    match result {
        Err(CustodyError::Pkcs11(error)) if !error.heals() => Ok(error),
        Err(error) => bail!("another error than expected: {error}"),
        Ok(_) => bail!("this must fail"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_tried_once_and_the_right_one_works_afterwards() -> Result<()> {
    with_token("a_wrong_pin_is_tried_once_and_the_right_one_works_afterwards", |config| {
        let settings = settings(config)?;
        let custodian = custody::open(config)?;
        let right = fs::read(&settings.pin_file)?;
        fs::write(&settings.pin_file, "99999")?;
        let error = refusal(custodian.random())?;
        ensure!(matches!(error, Pkcs11Error::PinWrong { .. }), "{error}");
        ensure!(error.to_string().contains(&*settings.pin_file.to_string_lossy()), "{error}");
        fs::write(&settings.pin_file, right)?;
        custodian.random()?;
        fs::set_permissions(&settings.pin_file, Permissions::from_mode(0o644))?;
        let error = refusal(custodian.random())?;
        ensure!(error.to_string().contains("0644"), "{error}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn robots_on_one_token_leave_one_another_alone() -> Result<()> {
    with_token("robots_on_one_token_leave_one_another_alone", |config| {
        let [one, other] = ["acme.robot-1", "acme.robot-2"]
            .map(|robot| custodian(settings(config)?.clone(), robot));
        let (one, other) = (one?, other?);
        let body = one.seal(FIRST, &root(1), None)?;
        let error = refusal(other.unseal(FIRST, &body))?;
        ensure!(matches!(error, Pkcs11Error::KeyGone { .. }), "{error}");
        let others = other.seal(FIRST, &root(2), None)?;
        let error = refusal(other.unseal(FIRST, &body))?;
        ensure!(matches!(error, Pkcs11Error::Tampered), "{error}");
        other.retire(FIRST, &others)?;
        ensure!(one.unseal(FIRST, &body)?.expose() == &[1; 32]);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn retiring_for_a_body_that_does_not_open_destroys_nothing() -> Result<()> {
    with_token("retiring_for_a_body_that_does_not_open_destroys_nothing", |config| {
        let custodian = custody::open(config)?;
        let first = custodian.seal(FIRST, &root(1), None)?;
        let mut second = custodian.seal(FIRST.next(), &root(2), Some(&first))?;
        second[20] ^= 1;
        let error = refusal(custodian.retire(FIRST.next(), &second))?;
        ensure!(matches!(error, Pkcs11Error::Tampered), "{error}");
        ensure!(custodian.unseal(FIRST, &first)?.expose() == &[1; 32]);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_state_is_told_from_a_damaged_one() -> Result<()> {
    with_token("an_old_copy_of_the_state_is_told_from_a_damaged_one", |config| {
        let custodian = custody::open(config)?;
        let first = custodian.seal(FIRST, &root(1), None)?;
        let second = custodian.seal(FIRST.next(), &root(2), Some(&first))?;
        custodian.retire(FIRST.next(), &second)?;
        let error = refusal(custodian.unseal(FIRST, &first))?;
        ensure!(matches!(error, Pkcs11Error::KeyGone { .. }), "{error}");
        let message = error.to_string();
        ensure!(message.contains("moai-epoch-1") && message.contains("old copy"), "{message}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_module_and_a_misspelt_label_are_named() -> Result<()> {
    with_token("a_missing_module_and_a_misspelt_label_are_named", |config| {
        let right = settings(config)?;
        let other_label = Pkcs11Config { token: "Moai".to_owned(), ..right.clone() };
        let Err(error) = custodian(other_label, "a.b")?.random() else { bail!("found it") };
        let message = error.to_string();
        ensure!(message.contains("\"Moai\"") && message.contains(LABEL), "{message}");
        let no_module = Pkcs11Config { module: "/no/such/module.so".into(), ..right.clone() };
        let error = refusal(custodian(no_module, "a.b")?.random())?;
        ensure!(error.to_string().contains("/no/such/module.so"), "{error}");
        Ok(())
    })
    .await
}
