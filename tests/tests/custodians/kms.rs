//! What only AWS KMS has: credentials, keys that somebody else manages, and the escrow.

use anyhow::{Result, bail, ensure};
use moai_agent::config::{Config, CustodianConfig, EscrowConfig, KmsConfig};
use moai_agent::custody::escrow::{self, EscrowError, EscrowKind};
use moai_agent::custody::kms::{KmsCustodian, KmsError};
use moai_agent::custody::{self, Custodian, CustodyError};
use moai_tests::moto::{ENVIRONMENT, Moto};
use moai_tests::proxy::{Direction, Proxy};
use moai_tests::scan::{self, Needles};
use moai_tpm::{Advice, Epoch, RootSecret};

use crate::{Inner, again, is_inner};

const FIRST: Epoch = Epoch(1);

async fn with_service(name: &str, extra: &[(&str, &str)], inner: Inner) -> Result<()> {
    if is_inner(inner).await? {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let service = Moto::start(scratch.path()).await?;
    let environment = ENVIRONMENT.iter().chain(extra);
    let environment: Vec<_> = environment.map(|(key, value)| (*key, (*value).to_owned())).collect();
    let toml =
        format!("custody.custodian = \"kms\"\nescrow.recipient = \"kms\"\n{}", service.toml());
    again(&format!("kms::{name}"), scratch.path(), &toml, &environment).await
}

fn settings(config: &Config) -> Result<&KmsConfig> {
    match &config.custody.custodian {
        CustodianConfig::Kms(settings) => Ok(settings),
        _ => bail!("the configuration names another custodian"),
    }
}

fn root() -> RootSecret {
    RootSecret::from_bytes([7; 32])
}

fn refusal<T>(result: Result<T, CustodyError>) -> Result<KmsError> {
    match result {
        Err(CustodyError::Kms(error)) => Ok(error),
        Err(error) => bail!("another error than expected: {error}"),
        Ok(_) => bail!("this must fail"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_robots_body_is_refused_by_the_service() -> Result<()> {
    with_service("another_robots_body_is_refused_by_the_service", &[], |config| {
        let body = custody::open(config)?.seal(FIRST, &root(), None)?;
        let other = KmsCustodian::new(settings(config)?.clone(), "acme.robot-2".parse()?);
        let error = refusal(other.unseal(FIRST, &body))?;
        ensure!(matches!(error, KmsError::Tampered), "{error}");
        ensure!(error.advice() == Advice::Stop && !error.heals());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_there_is_named_with_its_region() -> Result<()> {
    with_service("a_key_that_is_not_there_is_named_with_its_region", &[], |config| {
        let settings = KmsConfig { key: "alias/other".to_owned(), ..settings(config)?.clone() };
        let custodian = KmsCustodian::new(settings, config.identity.clone());
        let error = refusal(custodian.seal(FIRST, &root(), None))?;
        ensure!(matches!(error, KmsError::KeyNotFound { .. }), "{error}");
        let message = error.to_string();
        ensure!(message.contains("alias/other in eu-central-1"), "{message}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_the_error_says_how_to_give_them() -> Result<()> {
    let none = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    with_service("without_credentials_the_error_says_how_to_give_them", &none, |config| {
        let error = refusal(custody::open(config)?.random())?;
        ensure!(matches!(error, KmsError::Credentials { .. }), "{error}");
        ensure!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
        ensure!(error.heals(), "they may be given without a hand on the robot");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_secret_never_goes_to_the_service() -> Result<()> {
    const ROOT: [u8; 32] = *b"\xf3 a root secret of 32 bytes  \x00\xff\x81";
    let seal_and_open: Inner = |config| {
        let custodian = custody::open(config)?;
        let body = custodian.seal(FIRST, &RootSecret::from_bytes(ROOT), None)?;
        ensure!(custodian.unseal(FIRST, &body)?.expose() == &ROOT);
        Ok(())
    };
    if is_inner(seal_and_open).await? {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let service = Moto::start(scratch.path()).await?;
    let proxy = Proxy::start(service.port()).await?;
    let toml = service.toml().replace(&service.port().to_string(), &proxy.port().to_string());
    let toml = format!("custody.custodian = \"kms\"\n{toml}");
    let name = "kms::the_root_secret_never_goes_to_the_service";
    let environment = ENVIRONMENT.map(|(key, value)| (key, value.to_owned()));
    again(name, scratch.path(), &toml, &environment).await?;
    let mut needles = Needles::default();
    needles.parts("root secret", &ROOT)?;
    let needles = needles.build()?;
    let mut seen = Needles::default();
    seen.bytes("action", b"TrentService.GenerateDataKey")?;
    ensure!(!seen.build()?.bytes("up", &proxy.recorded(Direction::Up)).is_empty(), "went past");
    for direction in [Direction::Up, Direction::Down] {
        let findings = needles.bytes(&format!("{direction:?}"), &proxy.recorded(direction));
        ensure!(findings.is_empty(), "{}", scan::list(&findings));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_escrow_opens_with_the_service_and_for_its_own_robot_only() -> Result<()> {
    with_service("the_escrow_opens_with_the_service_and_for_its_own_robot_only", &[], |config| {
        let Some(recipient @ EscrowConfig::Kms(settings)) = &config.custody.escrow else {
            bail!("the configuration names another escrow")
        };
        let file = escrow::seal(recipient, &config.identity, Epoch(5), &root())?;
        ensure!(escrow::facts(&file)?.kind == EscrowKind::Kms);
        let (epoch, opened) = escrow::open_with_kms(&file, &config.identity, settings)?;
        ensure!(epoch == Epoch(5) && opened.expose() == root().expose());
        let other = "acme.robot-2".parse()?;
        let error = escrow::open_with_kms(&file, &other, settings).err();
        ensure!(matches!(error, Some(EscrowError::Kms(KmsError::Tampered))), "{error:?}");
        // Its purpose differs: an escrow is no root.sealed.
        let body = &file[16..file.len() - 32];
        let error = refusal(custody::open(config)?.unseal(Epoch(5), body))?;
        ensure!(matches!(error, KmsError::Tampered), "{error}");
        let keys = escrow::generate_keys()?;
        let error = escrow::open_with_key(&file, &config.identity, &keys.private_pem).err();
        ensure!(matches!(error, Some(EscrowError::OtherKind(EscrowKind::Kms))), "{error:?}");
        Ok(())
    })
    .await
}
