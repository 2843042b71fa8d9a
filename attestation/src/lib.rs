//! Verifies what a robot's TPM says about itself, in pure Rust.
//!
//! A server that requires attestation sends a challenge; the robot answers with [`Evidence`]:
//! its attestation key certifies that the robot's identity key lives in the same TPM and never
//! leaves it, and quotes the PCRs that measured the boot. [`verify`] compares that with the
//! [`Enrolment`] that an operator placed on the server when the robot was provisioned.
//!
//! Invariants of the crate:
//! 1. Bytes from a robot have a size cap, and their parsers neither panic nor allocate more than
//!    the cap.
//! 2. A statement is parsed after its signature was verified, and counts for nothing unless it
//!    carries the [`qualifying`] data of this challenge, this robot and this session.
//! 3. Every reason to refuse has an error of its own: see [`AttestationError`].
//! 4. Nothing here is secret.
//!
//! What attestation rests on is the enrolment: the attestation key in it is taken to be a TPM's
//! because the operator says so.

mod enrolment;
mod error;
mod evidence;
mod pcr_values;
mod public_area;
mod qualifying;
mod reader;
mod statement;
mod verify;

pub use enrolment::{ENROLMENT_FORMAT, Enrolment, EnrolmentError, MAX_ENROLMENT_LEN};
pub use error::{AttestationError, Part};
pub use evidence::{Attested, Evidence, EvidenceError, MAX_EVIDENCE_LEN};
pub use pcr_values::{PcrValues, PcrValuesError};
pub use public_area::{KeyAttributes, PublicArea, PublicAreaError};
pub use qualifying::qualifying;
pub use statement::{Statement, StatementError, StatementKind};
pub use verify::verify;
