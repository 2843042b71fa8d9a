//! Onboard software gets it wrong: one clear error, and the next sample works.

use anyhow::{Result, ensure};
use moai_tests::World;
use moai_tests::recordings::{CHANNELS, SAMPLES, Trial};
use moai_tests::reference::{Reference, Scheme};
use serde_json::json;

use crate::stage::{ARM, QUICK, start};

#[tokio::test(flavor = "multi_thread")]
async fn malformed_input_is_refused_once_and_the_window_under_way_stays_right() -> Result<()> {
    const TEN_MEGABYTES: usize = 10_000_000;
    let stage = start(World::builder()).await?;
    stage.open_arm().await?;
    let onboard = &stage.robot.onboard;
    let plaintext = Reference::load(Scheme::Tfhe, QUICK)?;
    // Only the last sample raises the alarm: a window with one sample too many would not have it.
    let mut trial = Trial { file: "", label: String::new(), samples: [[0; CHANNELS]; SAMPLES] };
    assert_eq!(plaintext.label(&trial)?, "clear");
    trial.samples[SAMPLES - 1] = [1000; CHANNELS];
    assert_eq!(plaintext.label(&trial)?, "alarm");
    let (first, rest) = trial.samples.split_at(7);
    for sample in first {
        onboard.input(ARM, sample).await?;
    }

    let huge = format!("[{}1]", "1,".repeat(TEN_MEGABYTES / 2));
    ensure!(huge.len() >= TEN_MEGABYTES, "not that huge");
    let blunders: [(&str, Vec<u8>); 8] = [
        ("malformed", b"Fx=1 Fy=2".to_vec()),
        ("malformed", b"\xff\xfe\x00".to_vec()),
        ("malformed", b"[1, 2, 3, NaN, 5, 6]".to_vec()),
        ("malformed", b"[1, 2, 3, 1e999, 5, 6]".to_vec()),
        ("malformed", b"".to_vec()),
        ("wrong_length", b"[1, 2, 3]".to_vec()),
        ("wrong_length", serde_json::to_vec(&json!({ "samples": [[1, 2, 3, 4, 5, 6], [1]] }))?),
        ("too_large", huge.into_bytes()),
    ];
    let count = blunders.len();
    for (code, payload) in blunders {
        let shown = String::from_utf8_lossy(&payload).chars().take(30).collect::<String>();
        onboard.raw_input(ARM, payload).await?;
        let error = onboard.error(ARM).await?;
        assert_eq!(error["code"], code, "to {shown}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 20), "{error}");
    }

    for sample in rest {
        onboard.input(ARM, sample).await?;
    }
    assert_eq!(onboard.result(ARM).await?["label"], "alarm");
    assert_eq!(stage.close_arm().await?.len(), 1);
    let history = onboard.client.history();
    let errors = history.iter().filter(|message| message.topic == "moai/task/arm/error");
    assert_eq!(errors.count(), count, "one error for each");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_with_what_to_do() -> Result<()> {
    let stage = start(World::builder()).await?;
    let onboard = &stage.robot.onboard;
    onboard.input(ARM, &[1, 2, 3, 4, 5, 6]).await?;
    assert_eq!(onboard.error(ARM).await?["code"], "not_open");
    onboard.close(ARM).await?;
    assert_eq!(onboard.error(ARM).await?["code"], "not_open");
    onboard.open(ARM, "nonesuch").await?;
    let error = onboard.error(ARM).await?;
    assert_eq!(error["code"], "unknown_model");
    assert!(error["message"].as_str().is_some_and(|text| text.contains(QUICK)), "{error}");
    assert_eq!(onboard.state(ARM, "ended").await?["model"], "nonesuch");
    onboard.open_with_ttl(ARM, QUICK, "forever").await?;
    assert_eq!(onboard.error(ARM).await?["code"], "malformed");
    Ok(())
}
