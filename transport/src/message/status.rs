//! Who is connected: the one thing on the uplink that is JSON and not signed.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{MessageError, malformed};
use crate::ids::{Identity, WorkerId};

/// Longest payload of a status topic, in bytes.
pub const MAX_STATUS_LEN: usize = 1024;

/// Payload of a worker's status topic, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerState {
    /// The worker.
    pub worker: WorkerId,
    /// Whether it is connected.
    pub up: bool,
}

/// Payload of a robot's status topic, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RobotState {
    /// The robot.
    pub identity: Identity,
    /// Whether it is connected.
    pub up: bool,
}

impl WorkerState {
    /// The payload's bytes.
    ///
    /// # Errors
    /// JSON cannot be written, which for this type does not happen.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        encode_json("worker status", self)
    }

    /// The state in a payload.
    ///
    /// # Errors
    /// Not a worker's state.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        decode_json("worker status", payload)
    }
}

impl RobotState {
    /// The payload's bytes.
    ///
    /// # Errors
    /// JSON cannot be written, which for this type does not happen.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        encode_json("robot status", self)
    }

    /// The state in a payload.
    ///
    /// # Errors
    /// Not a robot's state.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        decode_json("robot status", payload)
    }
}

fn encode_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, MessageError> {
    serde_json::to_vec(value).map_err(|error| malformed(what, &error))
}

fn decode_json<T: DeserializeOwned>(what: &'static str, payload: &[u8]) -> Result<T, MessageError> {
    if payload.len() > MAX_STATUS_LEN {
        return Err(MessageError::Inconsistent { what, problem: "it is too long" });
    }
    serde_json::from_slice(payload).map_err(|error| malformed(what, &error))
}
