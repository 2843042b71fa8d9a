//! What the benches measure: models, readings, keys.

use anyhow::{Context as _, Result, bail};
use moai_fhe::{Context, ContextDigest, Engine, Inputs, KeySeed, Model, ModelCard, setup};
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, Digest, Identity, SessionId, WorkerId};
use moai_transport::keys::SessionSigningKey;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::json;

use crate::pki::unix_now;
use crate::recordings::{self, Trial};

/// The robot of all benches.
pub const IDENTITY: &str = "acme.robot-1";

/// The three-class model of the repository: 24 features of a window of 15 × 6 readings.
///
/// # Errors
/// The file is missing or no model.
pub fn grasp() -> Result<Model> {
    let path = crate::repository().join("server/models/grasp.json");
    let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Model::from_json(&json)?)
}

/// The card of an imaginary model with so many features of 16 levels.
///
/// # Errors
/// A card may not have so many.
pub fn card(features: usize) -> Result<ModelCard> {
    let edges: Vec<u8> = (1..16).collect();
    let feature = json!({"channel": 0, "statistic": "mean", "transform": "none", "edges": edges});
    let card = json!({
        "format": 1, "id": format!("bench-{features}"), "kind": "lookup",
        "context": String::from(ContextDigest::from(&Context::tfhe())), "levels": 16,
        "window": {"samples": 1, "channels": ["a"]},
        "features": vec![feature; features], "labels": ["no", "yes"], "score_bits": 5,
    });
    Ok(serde_json::from_value(card)?)
}

/// One level per feature of a card.
///
/// # Errors
/// None, if the card is valid.
pub fn levels(card: &ModelCard) -> Result<Inputs> {
    let ModelCard::Tfhe(tfhe) = card else { bail!("the benches' models are of TFHE") };
    let values: Vec<u8> = (0..tfhe.level_count()).cycle().take(card.feature_count()).collect();
    Ok(Inputs::from_levels(card, &values)?)
}

/// An engine whose keys are of nobody.
///
/// # Errors
/// None for the context of this release.
pub fn engine() -> Result<Box<dyn Engine>> {
    Ok(setup(&Context::tfhe(), &KeySeed::from_bytes([7; 32]))?)
}

/// A rayon pool.
///
/// # Errors
/// Its threads cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool> {
    Ok(ThreadPoolBuilder::new().num_threads(threads).build()?)
}

/// The distinct recordings.
///
/// # Errors
/// They are not in the repository.
pub fn trials() -> Result<Vec<Trial>> {
    Ok(recordings::distinct(recordings::load(&recordings::directory())?))
}

/// A session id that counts.
#[must_use]
pub fn session(number: u64) -> SessionId {
    SessionId::new(1_700_000_000_000 + number, [0; 10])
}

/// The robot's identity.
///
/// # Errors
/// None.
pub fn identity() -> Result<Identity> {
    Ok(IDENTITY.parse()?)
}

/// The one worker.
///
/// # Errors
/// None.
pub fn worker() -> Result<WorkerId> {
    Ok("worker-1".parse()?)
}

/// The context as the uplink names it.
#[must_use]
pub fn context_id() -> ContextId {
    ContextId(Digest(Context::tfhe().digest()))
}

/// What signs the session's frames.
#[must_use]
pub fn session_key() -> SessionSigningKey {
    SessionSigningKey::from_seed(&[1; 32])
}

/// A frame with the claims the agent's and the server's frames have.
///
/// # Errors
/// None.
pub fn frame(kind: FrameKind, session: &SessionId, number: u64, body: Vec<u8>) -> Result<Frame> {
    let claims = Claims {
        identity: Some(identity()?),
        session: Some(session.clone()),
        number,
        model: Some("grasp".parse()?),
        context: Some(context_id()),
        expires_at: unix_now()? + 60,
        ..Claims::default()
    };
    Ok(Frame { kind, claims, body })
}
