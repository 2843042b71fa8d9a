//! Tests through the public surface of both halves, in one program so that keys are made once.

mod ckks;
mod common;
mod context;
mod evaluation;
mod keys;
mod model;
mod refusals;
