//! The claims of a frame: a CBOR map with small integer keys.
//!
//! Invariants:
//! - an unknown, doubled or mistyped claim is an error: what is not understood is not obeyed;
//! - a claim that a kind of frame must have is there.

use ciborium::Value;

use super::{FrameError, FrameKind};
use crate::cbor::{self, CborError};
use crate::ids::{ContextId, Digest, Identity, ModelId, SessionId, Tenant};

const IDENTITY: u8 = 1;
const SESSION: u8 = 2;
const NUMBER: u8 = 3;
const MODEL: u8 = 4;
const CONTEXT: u8 = 5;
const BODY_DIGEST: u8 = 6;
const EXPIRES_AT: u8 = 7;
const COMPUTE_MICROS: u8 = 8;
const TENANT: u8 = 9;

/// Whom and what a frame concerns. The body's digest is added when the frame is encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// The robot: the sender upward, the receiver downward. None in a catalogue.
    pub identity: Option<Identity>,
    /// The session. None in a catalogue, a command and its report.
    pub session: Option<SessionId>,
    /// Number of the open within the session, from 1 and never used twice; of the job, from 1;
    /// index of the chunk, from 0; when a catalogue or a command was issued, in milliseconds since
    /// 1970, and of a report the command's; 0 where there is none of these.
    pub number: u64,
    /// The model that is asked or has answered. Always in jobs and results.
    pub model: Option<ModelId>,
    /// The context of the session. Always in opens.
    pub context: Option<ContextId>,
    /// Until when the frame means something, in seconds since 1970. Chunks may have 0 for always.
    pub expires_at: u64,
    /// How long the server computed, in microseconds. In results, if the server tells.
    pub compute_micros: Option<u64>,
    /// Whose catalogue it is. In catalogues only.
    pub tenant: Option<Tenant>,
}

/// Why a payload is no set of claims.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimsError {
    #[error("claims: {0}")]
    Cbor(#[from] CborError),
    #[error("the claims are not a map with unsigned integer keys")]
    NotAMap,
    #[error("unknown claim {0}")]
    Unknown(u64),
    #[error("claim {0} is doubled")]
    Doubled(u64),
    #[error("claim {0} is malformed")]
    Malformed(u8),
    #[error("claim {0} is missing")]
    Missing(u8),
}

impl Claims {
    /// Checks that a frame of this kind has the claims it must have and no others.
    pub(super) fn check(&self, kind: FrameKind) -> Result<(), FrameError> {
        let fail = |problem| Err(FrameError::Claims { kind, problem });
        let concerns_robot = kind != FrameKind::Models;
        if self.identity.is_some() != concerns_robot {
            return fail(if concerns_robot { "lacks its robot" } else { "names a robot" });
        }
        if self.session.is_some() != kind.concerns_session() {
            return fail(if kind.concerns_session() {
                "lacks its session"
            } else {
                "names a session"
            });
        }
        if self.tenant.is_some() == concerns_robot {
            return fail(if concerns_robot { "names a tenant" } else { "lacks its tenant" });
        }
        let must_have_number = matches!(
            kind,
            FrameKind::Open
                | FrameKind::Job
                | FrameKind::Result
                | FrameKind::Models
                | FrameKind::Command
                | FrameKind::Report
        );
        if must_have_number && self.number == 0 {
            return fail("lacks its number");
        }
        let has_number = must_have_number || matches!(kind, FrameKind::Chunk | FrameKind::Error);
        if !has_number && self.number != 0 {
            return fail("has a number");
        }
        if self.expires_at == 0 && kind != FrameKind::Chunk {
            return fail("does not say until when it is good");
        }
        if matches!(kind, FrameKind::Job | FrameKind::Result) && self.model.is_none() {
            return fail("lacks its model");
        }
        if kind == FrameKind::Open && self.context.is_none() {
            return fail("lacks its context");
        }
        if self.compute_micros.is_some() && kind != FrameKind::Result {
            return fail("tells a compute time");
        }
        Ok(())
    }

    pub(super) fn to_cbor(&self, body: Digest) -> Result<Vec<u8>, CborError> {
        let entries = [
            (IDENTITY, self.identity.as_ref().map(|id| Value::from(id.to_string()))),
            (SESSION, self.session.as_ref().map(|id| Value::Bytes(id.as_bytes().to_vec()))),
            (NUMBER, Some(Value::from(self.number))),
            (MODEL, self.model.as_ref().map(|id| Value::from(id.as_str()))),
            (CONTEXT, self.context.map(|id| Value::Bytes(id.0.0.to_vec()))),
            (BODY_DIGEST, Some(Value::Bytes(body.0.to_vec()))),
            (EXPIRES_AT, Some(Value::from(self.expires_at))),
            (COMPUTE_MICROS, self.compute_micros.map(Value::from)),
            (TENANT, self.tenant.as_ref().map(|id| Value::from(id.as_str()))),
        ];
        let present = entries.into_iter().filter_map(|(key, value)| Some((key.into(), value?)));
        cbor::encode(&Value::Map(present.collect()))
    }

    pub(super) fn from_cbor(payload: &[u8]) -> Result<(Self, Digest), ClaimsError> {
        let Value::Map(entries) = cbor::decode(payload)? else { return Err(ClaimsError::NotAMap) };
        let mut slots: [Option<Value>; TENANT as usize] = Default::default();
        for (key, value) in entries {
            let key: u64 =
                key.as_integer().and_then(|key| key.try_into().ok()).ok_or(ClaimsError::NotAMap)?;
            let slot = usize::try_from(key)
                .ok()
                .and_then(|key| slots.get_mut(key.checked_sub(1)?))
                .ok_or(ClaimsError::Unknown(key))?;
            if slot.replace(value).is_some() {
                return Err(ClaimsError::Doubled(key));
            }
        }
        let [identity, session, number, model, context, digest, expires_at, compute, tenant] =
            slots;
        let claims = Self {
            identity: optional(IDENTITY, identity, text)?,
            session: optional(SESSION, session, |value| SessionId::from_bytes(array(value)?))?,
            number: required(NUMBER, number, unsigned)?,
            model: optional(MODEL, model, text)?,
            context: optional(CONTEXT, context, |value| Some(ContextId(Digest(array(value)?))))?,
            expires_at: required(EXPIRES_AT, expires_at, unsigned)?,
            compute_micros: optional(COMPUTE_MICROS, compute, unsigned)?,
            tenant: optional(TENANT, tenant, text)?,
        };
        Ok((claims, required(BODY_DIGEST, digest, |value| Some(Digest(array(value)?)))?))
    }
}

fn optional<T>(
    key: u8,
    value: Option<Value>,
    parse: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, ClaimsError> {
    value.map(|value| parse(&value).ok_or(ClaimsError::Malformed(key))).transpose()
}

fn required<T>(
    key: u8,
    value: Option<Value>,
    parse: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, ClaimsError> {
    optional(key, value, parse)?.ok_or(ClaimsError::Missing(key))
}

fn text<T: std::str::FromStr>(value: &Value) -> Option<T> {
    value.as_text()?.parse().ok()
}

fn array<const N: usize>(value: &Value) -> Option<[u8; N]> {
    value.as_bytes()?.as_slice().try_into().ok()
}

fn unsigned(value: &Value) -> Option<u64> {
    value.as_integer()?.try_into().ok()
}
