//! What the vault keeps.
//!
//! Invariant: a seed is shared and never copied; what stands beside it is not secret in itself.

use std::sync::Arc;
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::ids::{ContextId, Digest, SessionId, TaskId};
use moai_transport::message::Manifest;
use serde::{Deserialize, Serialize};

use crate::clock::{BootId, BootInstant};
use crate::secrets::SessionSeed;
use crate::session::lifecycle::{EndReason, Lifecycle};
use crate::spool::Era;
use crate::ttl::TtlClass;

/// A session as the vault keeps it. A clone shares the seed, it does not copy it.
#[derive(Clone)]
pub struct SessionRecord {
    /// The session.
    pub id: SessionId,
    /// What all its keys come from.
    pub seed: Arc<SessionSeed>,
    /// What may be known of it.
    pub facts: SessionFacts,
}

/// The part of a record that is not secret in itself.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFacts {
    /// The task it serves.
    pub task: TaskId,
    /// The model it was opened for, as the catalogue had it then.
    pub card: ModelCard,
    /// Its lifetime class.
    pub ttl: TtlClass,
    /// Where it is in its life.
    pub state: Lifecycle,
    /// What of its results may leave the agent.
    pub release: Release,
    /// Whether its keys were made before the task was opened.
    pub warm: bool,
    /// When it ends.
    pub expires: BootInstant,
    /// The same as Unix time, if the wall clock was known good when the session began: what counts
    /// after a reboot.
    pub expires_unix: Option<Duration>,
    /// The boot `expires` belongs to.
    pub boot: BootId,
    /// What its evaluation keys look like; absent until they were generated once.
    pub manifest: Option<Manifest>,
    /// How often the session was begun or resumed: each time its opens are numbered from above all
    /// numbers that were ever used.
    pub run: u32,
    /// The spool's era when it began; in another one it takes no more jobs.
    pub era: Era,
}

/// What of a decrypted result onboard software gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// The label.
    #[default]
    Label,
    /// The label, and the scores it follows from: integers, as the model declares them.
    Scores,
}

/// A session that is over and has jobs whose error is not told yet, or may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedFacts {
    /// The task it served.
    pub task: TaskId,
    /// Why it ended.
    pub reason: EndReason,
}

/// A seed whose evaluation keys were made before any session needs them. A clone shares the seed.
#[derive(Clone)]
pub struct WarmRecord {
    /// The name of its keys' file; no session's id.
    pub id: SessionId,
    /// What all its keys come from.
    pub seed: Arc<SessionSeed>,
    /// What may be known of it.
    pub facts: WarmFacts,
}

/// The part of a warm record that is not secret in itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmFacts {
    /// What the keys were made for.
    pub context: ContextId,
    /// Length of the keys' file in bytes.
    pub key_len: u64,
    /// Digest of the keys' file.
    pub key_digest: Digest,
}
