//! Stacks that were used with a secret.
//!
//! Invariant: what ran inside [`scrubbed`] leaves nothing of its frames behind, as long as they
//! were no deeper than [`SCRUBBED_LEN`]. Heap memory of secrets wipes itself.

use zeroize::zeroize_stack;

/// More than keys, encryption and decryption take of a stack.
const SCRUBBED_LEN: usize = 32 * 1024;

/// Runs `work` and overwrites the part of the stack it ran on: states of hash functions, seeds,
/// registers that were spilled.
pub(crate) fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    let outcome = apart(work);
    zeroize_stack::<SCRUBBED_LEN>();
    outcome
}

/// Keeps the frames of `work` out of its caller's, which is not overwritten.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}
