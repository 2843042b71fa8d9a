//! The rows of the fault suite that need nothing of the machine and are over soon; `cargo xtask test
//! --faults` runs all.

use anyhow::{Context as _, Result, ensure};
use moai_tests::faults::row::Row;

use crate::stage::turn;

async fn passes(name: &str) -> Result<()> {
    let _turn = turn().await?;
    let row = Row::named(name).with_context(|| format!("there is no row {name}"))?;
    let report = row.run().await?;
    let complaint = row.complaint(&report);
    ensure!(complaint.is_none(), "{}; {report:?}", complaint.unwrap_or_default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_mid_load_loses_doubles_and_mixes_up_nothing() -> Result<()> {
    passes("kill-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_killed_in_mid_load_is_used_again_when_it_is_back() -> Result<()> {
    passes("kill-tpm").await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_vault_that_was_damaged_are_refused_one_by_one() -> Result<()> {
    passes("vault-flips").await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_a_damaged_spool_has_lost_are_told_and_no_others() -> Result<()> {
    passes("spool-flips").await
}
