//! Tests of the crate through its public surface.

#[cfg(test)]
mod common;
#[cfg(test)]
mod encryption;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod golden;
#[cfg(test)]
#[cfg(feature = "interop")]
mod interop;
