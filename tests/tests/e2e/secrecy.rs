//! What nobody may find: readings, session seeds and the root secret, in anything that crossed the
//! uplink, was written to a file, or was logged.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use moai_agent::custody::ROOT_FILE;
use moai_agent::custody::files::read_sealed;
use moai_agent::secrets::VaultKey;
use moai_agent::vault::{LockedVault, SessionRecord};
use moai_fhe::{Context, ModelCard};
use moai_tests::World;
use moai_tests::proxy::Direction;
use moai_tests::recordings::SAMPLES;
use moai_tests::reference::{Reference, Scheme};
use moai_tests::robot::Robot;
use moai_tests::scan::{Needles, Scanner, list};
use moai_tpm::{Options, RootSecret, SealedRoot, Tcti, Tpm};
use moai_transport::frame::FrameKind;
use serde::Serialize;
use serde_json::{Value, json};

use crate::stage::{ARM, QUICK, frames, start};

const CKKS_MODEL: &str = "grasp-linear";
/// A window that occurs nowhere by chance: six values a sample, each of them different.
const INTEGERS: [i16; 6] = [-2713, 1931, -3049, 1877, -2203, 1613];
const FRACTIONS: [f64; 6] =
    [1_234.567_8, -2_345.678_9, 3_456.789_1, -4_567.891_2, 5_678.912_3, -6_789.123_4];

/// Unseals the root secret of a robot whose agent is stopped: a TPM serves one at a time.
pub(crate) async fn root_secret(robot: &Robot) -> Result<RootSecret> {
    let (tcti, state) = (Tcti::from_str(&robot.tpm.tcti())?, robot.agent.state_directory());
    tokio::task::spawn_blocking(move || {
        let file = read_sealed(&state.join(ROOT_FILE))?.context("the robot is provisioned")?;
        let tpm = Tpm::start(tcti, Options::default())?;
        Ok(tpm.unseal(&SealedRoot::from_bytes(&file.body)?, &[])?.root)
    })
    .await?
}

fn vault_records(robot: &Robot, secret: &RootSecret) -> Result<Vec<SessionRecord>> {
    open_vault(&robot.agent.state_directory().join("vault.redb"), secret)
}

/// The records of a vault, each of which must open.
pub(crate) fn open_vault(path: &Path, secret: &RootSecret) -> Result<Vec<SessionRecord>> {
    let vault = LockedVault::open(path)?;
    let epoch = vault.epoch()?.context("the vault has an epoch")?;
    let records = vault.unlock(&VaultKey::derive(secret), epoch)?.load()?;
    Ok(records.into_iter().collect::<Result<_, _>>()?)
}

/// The sessions in the vault of a robot whose agent is stopped.
pub(crate) async fn kept_sessions(robot: &Robot) -> Result<Vec<SessionRecord>> {
    vault_records(robot, &root_secret(robot).await?)
}

/// Every rendering of the readings above that a leak would plausibly have.
fn reading_needles(needles: &mut Needles) -> Result<()> {
    needles.numbers("sample", &INTEGERS)?;
    needles.numbers("channel", &[INTEGERS[0]; 6])?;
    for value in FRACTIONS {
        needles.bytes("value as text", value.to_string().as_bytes())?;
        needles.bytes("value as f64 le", &value.to_le_bytes())?;
        needles.bytes("value as f64 be", &value.to_be_bytes())?;
    }
    for pair in FRACTIONS.windows(2) {
        #[expect(clippy::cast_possible_truncation, reason = "that is what a leak as f32 would do")]
        let pair: Vec<f32> = pair.iter().map(|value| *value as f32).collect();
        let le: Vec<u8> = pair.iter().flat_map(|value| value.to_le_bytes()).collect();
        let be: Vec<u8> = pair.iter().flat_map(|value| value.to_be_bytes()).collect();
        needles.bytes("values as f32 le", &le)?;
        needles.bytes("values as f32 be", &be)?;
    }
    Ok(())
}

/// A window of the same sample over and over.
fn window(sample: impl Serialize + Copy) -> Value {
    json!({ "samples": vec![sample; SAMPLES] })
}

fn secret_needles(
    needles: &mut Needles,
    root: &RootSecret,
    records: &[SessionRecord],
) -> Result<()> {
    needles.bytes("root secret", root.expose())?;
    for record in records {
        needles.bytes("session seed", record.seed.expose())?;
        for context in [Context::tfhe(), ckks()?.to_context()] {
            let seed = record.seed.fhe_seed(context.scheme_name());
            needles.bytes("key seed", seed.expose())?;
            let keys = seed.expose_keys(&context);
            for (what, secret) in keys.coefficients.iter().chain(&keys.seeds) {
                needles.bytes(what, secret)?;
            }
        }
        needles.bytes("signing key", &**record.seed.signing_seed())?;
    }
    Ok(())
}

/// The card of the model that is asked under CKKS.
fn ckks() -> Result<ModelCard> {
    Ok(Reference::load(Scheme::Ckks, CKKS_MODEL)?.card().clone())
}

fn scanner(root: &RootSecret, records: &[SessionRecord]) -> Result<Scanner> {
    let mut needles = Needles::default();
    reading_needles(&mut needles)?;
    secret_needles(&mut needles, root, records)?;
    needles.build()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_reading_is_in_any_message_file_or_log() -> Result<()> {
    search_everything(Scheme::Tfhe, QUICK, 100).await
}

#[tokio::test(flavor = "multi_thread")]
async fn none_is_there_under_ckks_either() -> Result<()> {
    search_everything(Scheme::Ckks, CKKS_MODEL, 5).await
}

/// Runs jobs of a model whose keys take at least so many chunks, and searches all that there is.
async fn search_everything(scheme: Scheme, model: &str, chunks: usize) -> Result<()> {
    let mut stage = start(World::builder().scheme(scheme).agent_stopped().proxied()).await?;
    stage.operator.subscribe("#").await?;
    stage.robot.start_agent().await?;
    stage.open_arm_with(model).await?;
    let onboard = &stage.robot.onboard;
    onboard.input(ARM, &window(INTEGERS)).await?;
    onboard.input(ARM, &window(FRACTIONS)).await?;
    for _ in 0..2 {
        onboard.result(ARM).await?;
    }
    // Readings in messages that are refused are readings too.
    let [mangled, short] = [
        format!("{{\"values\": {FRACTIONS:?}, \"unit\": \"N\"}}"),
        format!("{:?}", &FRACTIONS[..5]),
    ];
    for blunder in [mangled, short] {
        onboard.raw_input(ARM, blunder).await?;
        onboard.error(ARM).await?;
    }
    stage.robot.agent.stop().await?;

    let root = root_secret(&stage.robot).await?;
    let records = vault_records(&stage.robot, &root)?;
    ensure!(records.len() == 1, "the live session is in the vault");
    let scanner = scanner(&root, &records)?;

    // The capture is what it should be: keys, jobs and answers, without TLS around them.
    assert!(frames(&stage.operator, FrameKind::Chunk).len() >= chunks);
    assert_eq!(frames(&stage.operator, FrameKind::Job).len(), 2);
    assert_eq!(frames(&stage.operator, FrameKind::Result).len(), 2);
    for message in stage.operator.history() {
        let findings = scanner.bytes(&message.topic, &message.payload);
        assert!(findings.is_empty(), "{}", list(&findings));
    }
    let proxy = stage.proxy.as_ref().context("a proxy was asked for")?;
    for direction in [Direction::Up, Direction::Down] {
        let findings = scanner.bytes("the wire", &proxy.recorded(direction));
        assert!(findings.is_empty(), "{}", list(&findings));
    }
    let log = std::fs::read_dir(stage.directory().join("acme.robot-1/agent/logs"))?;
    assert!(log.count() > 0, "logs are files below the directory that is searched");
    let agent = stage.robot.agent.config_file();
    assert!(std::fs::read_to_string(agent)?.contains("level = \"trace,tss_esapi=trace\""));
    let findings = scanner.path(stage.directory())?;
    assert!(findings.is_empty(), "{}", list(&findings));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_finds_what_is_planted() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    stage.open_arm().await?;
    stage.robot.agent.stop().await?;
    let root = root_secret(&stage.robot).await?;
    let records = vault_records(&stage.robot, &root)?;
    let scanner = scanner(&root, &records)?;
    let seed = records.first().context("the live session is in the vault")?.seed.expose();
    let plants = [
        ("root secret", root.expose().to_vec()),
        ("root secret", hex::encode(root.expose()).into_bytes()),
        ("session seed", [b"seed=".as_slice(), seed].concat()),
        ("sample", serde_json::to_vec(&window(INTEGERS))?),
        ("value as text", serde_json::to_vec(&FRACTIONS)?),
        ("value as f64 le", FRACTIONS.iter().flat_map(|value| value.to_le_bytes()).collect()),
    ];
    let log = stage.directory().join("acme.robot-1/agent/logs/planted.err");
    for (what, plant) in plants {
        std::fs::write(&log, plant)?;
        let findings = scanner.path(stage.directory())?;
        assert!(findings.iter().any(|finding| finding.what.starts_with(what)), "{what}");
        assert!(findings.iter().all(|finding| finding.place.ends_with("planted.err")));
    }
    let sealed = stage.robot.agent.state_directory().join(ROOT_FILE);
    assert!(scanner.path(&sealed)?.is_empty(), "what is sealed does not count as found");
    Ok(())
}
