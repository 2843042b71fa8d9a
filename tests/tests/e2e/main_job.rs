//! The main job: readings in, decision out, and the decision is the plaintext model's.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use moai_tests::World;
use moai_tests::recordings::{Outcome, Trial};
use moai_tests::reference::{Reference, Scheme};
use serde_json::json;

use crate::stage::{start, trials};

/// Two trials of each class.
pub(crate) fn some_of_each() -> Result<Vec<Trial>> {
    const EACH: usize = 2;
    let mut taken: BTreeMap<Outcome, usize> = BTreeMap::new();
    let mut some = trials()?;
    some.retain(|trial| {
        let Some(outcome) = trial.outcome() else { return false };
        let taken = taken.entry(outcome).or_default();
        *taken += 1;
        *taken <= EACH
    });
    ensure!(some.len() == 3 * EACH, "there are three classes");
    Ok(some)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_model_decides_on_ciphertext_what_it_decides_on_plaintext() -> Result<()> {
    let stage = start(World::builder()).await?;
    let onboard = &stage.robot.onboard;
    for model in ["grasp", "failure", "force-alarm"] {
        let plaintext = Reference::load(Scheme::Tfhe, model)?;
        onboard.open(model, model).await?;
        onboard.state(model, "active").await?;
        let mut labels = BTreeSet::new();
        for trial in some_of_each()? {
            for sample in &trial.samples {
                onboard.input(model, sample).await?;
            }
            let result = onboard.result(model).await?;
            let label = plaintext.label(&trial)?;
            assert_eq!(result["label"], label, "{model} on {} of {}", trial.label, trial.file);
            labels.insert(label);
        }
        assert!(labels.len() > 1, "{model} said {labels:?} to everything");
        onboard.close(model).await?;
        onboard.state(model, "ended").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_says_where_its_time_and_its_bytes_went() -> Result<()> {
    let stage = start(World::builder()).await?;
    let session = stage.open_arm().await?;
    let trial = trials()?.into_iter().next().context("there are trials")?;
    stage.submit(&trial).await?;
    let result = stage.robot.onboard.result("arm").await?;
    assert_eq!(result["job"], 1);
    assert_eq!(result["session"], session);
    assert_eq!(result["model"], "force-alarm");
    for part in ["encrypt_us", "uplink_us", "compute_us", "decrypt_us", "total_us"] {
        assert!(result["timing"][part].as_u64().is_some(), "{part} is missing in {result}");
    }
    assert_eq!(result["bytes"]["plain"], 15 * 6 * 8);
    let up = result["bytes"]["ciphertext_up"].as_u64().context("no ciphertext_up")?;
    assert!((1..=150).contains(&up), "a job's ciphertext has {up} bytes");
    // Other spellings of the same window are the same window.
    for sample in &trial.samples {
        stage.robot.onboard.input("arm", &json!({ "values": sample })).await?;
    }
    assert_eq!(stage.robot.onboard.result("arm").await?["label"], result["label"]);
    Ok(())
}
