//! A thread of low priority for one piece of work.
//!
//! Invariant: the thread, and what the work left on its stack, end with the work.

use std::io;

/// Below what the robot is there for (`nice(2)`).
const NICE: i32 = 10;
const NAME: &str = "warm-keys";

fn step_back() {
    // At normal priority it works too.
    let _ = rustix::process::nice(NICE);
}

/// Runs `work` on the one thread of a pool: TFHE spreads its work over the pool that it runs in.
#[cfg(feature = "tfhe")]
pub(super) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| NAME.to_owned())
        .start_handler(|_| step_back())
        .build()
        .map_err(io::Error::other)?;
    Ok(pool.install(work))
}

/// Runs `work` on a thread.
#[cfg(not(feature = "tfhe"))]
pub(super) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name(NAME.to_owned()).spawn_scoped(scope, || {
                step_back();
                work()
            })?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
