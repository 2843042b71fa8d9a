//! Stacks that were used with a secret.
//!
//! Invariant: what ran inside [`scrubbed`] leaves nothing of its frames behind, as long as they
//! were no deeper than [`SCRUBBED_LEN`].

use zeroize::zeroize_stack;

/// More than keys, encryption and decryption take of a stack.
const SCRUBBED_LEN: usize = 64 * 1024;

/// Runs `work` and overwrites the part of the stack it ran on: generator states, seeds, copies of
/// arguments. What it returns should be on the heap if it is secret.
pub(super) fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    let outcome = apart(work);
    zeroize_stack::<SCRUBBED_LEN>();
    outcome
}

#[cfg(feature = "tfhe")]
/// The same for work that is spread over the current rayon pool. Waits until each of its threads
/// is done with other work.
pub(super) fn scrubbed_pool<T>(work: impl FnOnce() -> T) -> T {
    let outcome = scrubbed(work);
    rayon::broadcast(|_| zeroize_stack::<SCRUBBED_LEN>());
    outcome
}

/// Keeps the frames of `work` out of its caller's, which is not overwritten.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// How much of what `run` makes of the work below leaves its mark on the stack.
    fn left_behind(run: impl FnOnce(&mut dyn FnMut())) -> usize {
        const LEN: usize = 16 * 1024;
        let mut address = 0;
        run(&mut || {
            let mut secret = [0xa5_u8; LEN];
            address = std::hint::black_box(&mut secret).as_ptr().addr();
        });
        let mut bytes = vec![0; LEN];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, u64::try_from(address).unwrap()).unwrap();
        // Single bytes are also those of addresses, which reading the memory leaves there.
        bytes.chunks(8).filter(|word| *word == [0xa5; 8]).count() * 8
    }

    #[test]
    fn what_worked_with_a_secret_is_overwritten_on_the_stack() {
        assert!(left_behind(|work| apart(work)) > 8 * 1024, "or the test looks in the wrong place");
        assert_eq!(left_behind(|work| scrubbed(work)), 0);
    }
}
