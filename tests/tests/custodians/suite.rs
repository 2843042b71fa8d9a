//! What holds for every custodian.

use anyhow::{Context, Result, bail, ensure};
use moai_agent::config::Config;
use moai_agent::custody::{self, Custodian};
use moai_tests::moto::Moto;
use moai_tests::softhsm::SoftHsm;
use moai_tests::swtpm::Swtpm;
use moai_tpm::{Epoch, RootSecret};

use crate::backends::{Backend, Env};
use crate::{Inner, again, is_inner};

const FIRST: Epoch = Epoch(1);
const SECOND: Epoch = Epoch(2);

/// The suite for one backend.
macro_rules! suite {
    ($custodian:ident, $backend:ty) => {
        mod $custodian {
            use super::*;

            suite!($custodian, $backend, here, what_it_seals_opens_again);
            suite!($custodian, $backend, here, a_body_opens_in_its_own_epoch_only);
            suite!($custodian, $backend, here, an_altered_body_is_refused_wherever_it_was_altered);
            suite!($custodian, $backend, here, its_randomness_does_not_repeat);
            suite!($custodian, $backend, here, what_is_retired_is_dead_where_it_says_that_it_shreds);
            suite!($custodian, $backend, here, a_second_sealing_in_one_epoch_spares_the_first);
            suite!($custodian, $backend, away, the_error_names_what_is_away);
        }
    };
    ($custodian:ident, $backend:ty, $state:ident, $property:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $property() -> Result<()> {
            let name = concat!("suite::", stringify!($custodian), "::", stringify!($property));
            super::$state::<$backend>(name, suite!(@inner $state, $backend, $property)).await
        }
    };
    (@inner here, $backend:ty, $property:ident) => {
        |config| super::$property(&*custody::open(config)?)
    };
    (@inner away, $backend:ty, $property:ident) => {
        |config| super::$property::<$backend>(config)
    };
}

suite!(tpm, Swtpm);
suite!(pkcs11, SoftHsm);
suite!(kms, Moto);
suite!(env, Env);

async fn here<B: Backend>(name: &str, inner: Inner) -> Result<()> {
    if is_inner(inner).await? {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let backend = B::start(scratch.path()).await?;
    again(name, scratch.path(), &backend.toml(), &backend.environment()).await
}

async fn away<B: Backend>(name: &str, inner: Inner) -> Result<()> {
    if is_inner(inner).await? {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let mut backend = B::start(scratch.path()).await?;
    backend.take_away().await?;
    again(name, scratch.path(), &backend.toml(), &backend.environment()).await
}

fn root(byte: u8) -> RootSecret {
    RootSecret::from_bytes([byte; 32])
}

fn opens(custodian: &dyn Custodian, epoch: Epoch, body: &[u8], byte: u8) -> Result<()> {
    let root = custodian.unseal(epoch, body)?;
    ensure!(root.expose() == &[byte; 32], "another root secret came out");
    Ok(())
}

fn what_it_seals_opens_again(custodian: &dyn Custodian) -> Result<()> {
    let body = custodian.seal(FIRST, &root(1), None)?;
    opens(custodian, FIRST, &body, 1)?;
    opens(custodian, FIRST, &body, 1)?;
    ensure!(!body.windows(32).any(|window| window == [1; 32]), "the root secret is in the body");
    let said = custodian.describe()?;
    ensure!(said.to_lowercase().contains(&custodian.kind().to_string()), "it calls itself {said}");
    Ok(())
}

fn a_body_opens_in_its_own_epoch_only(custodian: &dyn Custodian) -> Result<()> {
    let first = custodian.seal(FIRST, &root(1), None)?;
    let second = custodian.seal(SECOND, &root(2), Some(&first))?;
    for (epoch, body) in [(FIRST, &second), (SECOND, &first), (Epoch(3), &first)] {
        ensure!(custodian.unseal(epoch, body).is_err(), "opened in epoch {epoch}");
    }
    opens(custodian, FIRST, &first, 1)?;
    opens(custodian, SECOND, &second, 2)
}

fn an_altered_body_is_refused_wherever_it_was_altered(custodian: &dyn Custodian) -> Result<()> {
    let body = custodian.seal(FIRST, &root(1), None)?;
    for position in 0..body.len() {
        let mut altered = body.clone();
        altered[position] ^= 1;
        ensure!(custodian.unseal(FIRST, &altered).is_err(), "byte {position} does not matter");
    }
    for other in [&[][..], &body[1..], &body[..body.len() - 1], &[&body[..], &[0]].concat()] {
        ensure!(custodian.unseal(FIRST, other).is_err(), "opened with {} bytes", other.len());
    }
    opens(custodian, FIRST, &body, 1)
}

fn its_randomness_does_not_repeat(custodian: &dyn Custodian) -> Result<()> {
    let draws = [custodian.random()?, custodian.random()?, custodian.random()?];
    ensure!(draws[0] != draws[1] && draws[1] != draws[2] && draws[0] != draws[2]);
    ensure!(draws.iter().all(|draw| draw[..16] != draw[16..]));
    Ok(())
}

fn what_is_retired_is_dead_where_it_says_that_it_shreds(custodian: &dyn Custodian) -> Result<()> {
    let first = custodian.seal(FIRST, &root(1), None)?;
    let second = custodian.seal(SECOND, &root(2), Some(&first))?;
    opens(custodian, FIRST, &first, 1)?;
    custodian.retire(SECOND, &second)?;
    opens(custodian, SECOND, &second, 2)?;
    match custodian.unseal(FIRST, &first) {
        Ok(_) => ensure!(!custodian.shreds(), "it says that it shreds, and the old body opens"),
        Err(error) => {
            ensure!(custodian.shreds(), "it shreds without saying so: {error}");
            ensure!(!error.heals(), "nothing brings the key back: {error}");
        }
    }
    custodian.retire(SECOND, &second).context("there is nothing to retire, which is no error")?;
    opens(custodian, SECOND, &second, 2)
}

/// As after a start that was cut off between sealing and writing.
fn a_second_sealing_in_one_epoch_spares_the_first(custodian: &dyn Custodian) -> Result<()> {
    let first = custodian.seal(FIRST, &root(1), None)?;
    let cut_off = custodian.seal(SECOND, &root(2), Some(&first))?;
    let second = custodian.seal(SECOND, &root(3), Some(&first))?;
    opens(custodian, FIRST, &first, 1)?;
    opens(custodian, SECOND, &second, 3)?;
    custodian.retire(SECOND, &second)?;
    opens(custodian, SECOND, &second, 3)?;
    if custodian.shreds() {
        ensure!(custodian.unseal(SECOND, &cut_off).is_err(), "what was cut off is not dead");
    }
    Ok(())
}

fn the_error_names_what_is_away<B: Backend>(config: &Config) -> Result<()> {
    let attempt = custody::open(config).and_then(|custodian| custodian.random());
    let Err(error) = attempt else { bail!("it works without the other side") };
    let message = error.to_string();
    ensure!(message.contains(B::AWAY), "{message}");
    ensure!(error.heals() == B::COMES_BACK, "waits for it: {}; {message}", error.heals());
    Ok(())
}
