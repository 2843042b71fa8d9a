//! Verification through the crate's public surface, with statements made in software: what a TPM
//! would never sign is signed here.

mod format;
mod parsing;
mod robot;
mod verdict;
