//! Identifiers, parsed once and valid ever after.
//!
//! Invariants:
//! - a value of these types is well formed: no other text or bytes can become one;
//! - no identifier holds a character that means something in an MQTT topic or topic filter;
//! - `Display` gives exactly what `FromStr` takes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Longest tenant and robot name, in bytes.
pub const MAX_NAME_LEN: usize = 32;
/// Longest worker, model and task id, in bytes.
pub const MAX_ID_LEN: usize = 64;

/// Why a text is no identifier. The text is wrong for good: fix it at its source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {expected}")]
pub struct ParseIdError {
    kind: &'static str,
    expected: &'static str,
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_id(text: &str) -> bool {
    (1..=MAX_ID_LEN).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// A newtype over a short text of a fixed alphabet.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $is_valid:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if $is_valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(ParseIdError { kind: $kind, expected: $expected })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        text_conversions!($name);
    };
}

/// `TryFrom` and serde by way of the text form.
macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<&str> for $name {
            type Error = ParseIdError;

            fn try_from(text: &str) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// Who owns a fleet of robots.
    Tenant, "a tenant", is_name, "1 to 32 characters of a-z, 0-9 and -"
);
text_id!(
    /// One device of a tenant.
    Robot, "a robot", is_name, "1 to 32 characters of a-z, 0-9 and -"
);
text_id!(
    /// One run of one server process: fresh at every start.
    WorkerId, "a worker id", is_id, "1 to 64 characters of A-Z, a-z, 0-9, _ and -"
);
text_id!(
    /// Name of the shared subscription through which workers take new sessions. Whoever knows it
    /// and may subscribe can take a robot's sessions away, so it is kept among the servers.
    WorkerGroup, "a worker group", is_id, "1 to 64 characters of A-Z, a-z, 0-9, _ and -"
);
text_id!(
    /// What a server computes.
    ModelId, "a model id", is_id, "1 to 64 characters of A-Z, a-z, 0-9, _ and -"
);
text_id!(
    /// A piece of work that onboard software wants a model for.
    TaskId, "a task id", is_id, "1 to 64 characters of A-Z, a-z, 0-9, _ and -"
);

/// A robot as its certificate names it: the common name is `tenant.robot`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Who owns the robot.
    pub tenant: Tenant,
    /// The robot.
    pub robot: Robot,
}

impl FromStr for Identity {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = ParseIdError {
            kind: "an identity",
            expected: "tenant.robot, each of them 1 to 32 characters of a-z, 0-9 and -",
        };
        let (tenant, robot) = text.split_once('.').ok_or_else(|| error.clone())?;
        match (tenant.parse(), robot.parse()) {
            (Ok(tenant), Ok(robot)) => Ok(Self { tenant, robot }),
            _ => Err(error),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tenant, self.robot)
    }
}

text_conversions!(Identity);

/// One ephemeral key set: a UUID of version 7 (RFC 9562). Text is the hyphenated lower-case form;
/// binary formats take the 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// A new id from the wall clock and 80 random bits, of which six give way to version and
    /// variant. Only the low 48 bits of the milliseconds since 1970 count.
    #[must_use]
    pub fn new(unix_millis: u64, random: [u8; 10]) -> Self {
        Self(*uuid::Builder::from_unix_timestamp_millis(unix_millis, &random).as_uuid().as_bytes())
    }

    /// The id of these bytes; none if they are no UUID of version 7.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let uuid = Uuid::from_bytes(bytes);
        let is_v7 = uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122;
        is_v7.then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::parse_str(text).ok().and_then(|uuid| Self::from_bytes(*uuid.as_bytes()));
        // `Uuid` also takes upper case, braces and other forms, which would give a session two names.
        id.filter(|id| id.to_string() == text).ok_or(ParseIdError {
            kind: "a session id",
            expected: "a UUID of version 7 in hyphenated lower-case form",
        })
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).as_hyphenated().fmt(f)
    }
}

/// Number of a job within its session, from 1.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct JobNumber(pub u64);

impl fmt::Display for JobNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A SHA-256 digest (FIPS 180-4). Text is lower-case hexadecimal; binary formats take the 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => {
                Err(ParseIdError { kind: "a digest", expected: "64 lower-case hexadecimal digits" })
            }
        }
    }
}

/// A context: scheme and parameters, named by the digest of their canonical bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContextId(pub Digest);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ContextId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Serde as text for people and as bytes for machines.
macro_rules! text_or_bytes {
    ($name:ident, $expected:literal, $from_bytes:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    return text.parse().map_err(serde::de::Error::custom);
                }
                let bytes = crate::cbor::bytes::deserialize(deserializer)?;
                bytes
                    .try_into()
                    .ok()
                    .and_then($from_bytes)
                    .ok_or_else(|| serde::de::Error::custom($expected))
            }
        }
    };
}

text_or_bytes!(
    SessionId,
    "a session id must be the 16 bytes of a UUID of version 7",
    SessionId::from_bytes
);
text_or_bytes!(Digest, "a digest must be 32 bytes", |bytes| Some(Digest(bytes)));
