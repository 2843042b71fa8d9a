//! Notices when the wall clock is set.
//!
//! Invariant: it changes nothing; lifetimes run on the boot clock.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Clock;
use crate::audit::{Audit, AuditEvent};

const EVERY: Duration = Duration::from_secs(10);
/// Smaller steps are a clock that is being kept right.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Takes each jump down, until the agent stops.
pub async fn run(clock: Arc<dyn Clock>, audit: Audit, stop: CancellationToken) {
    let mut before = offset(&*clock);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = offset(&*clock);
        let jump = now.saturating_sub(before);
        if jump.unsigned_abs() > TOLERANCE.as_millis().try_into().unwrap_or(u64::MAX) {
            let seconds = jump / 1000;
            tracing::warn!(seconds, "the wall clock was set");
            audit.record(AuditEvent::ClockJumped { seconds });
        }
        before = now;
    }
}

/// How far the wall clock is ahead of the boot clock, in milliseconds.
fn offset(clock: &dyn Clock) -> i64 {
    let unix = i64::try_from(clock.unix().as_millis()).unwrap_or(i64::MAX);
    unix.saturating_sub(i64::try_from(clock.boot().0).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::BootInstant;

    struct Hands {
        boot: AtomicU64,
        unix: AtomicU64,
    }

    impl Clock for Hands {
        fn is_trusted(&self) -> bool {
            true
        }

        fn boot(&self) -> BootInstant {
            BootInstant(self.boot.load(Ordering::SeqCst))
        }

        fn unix(&self) -> Duration {
            Duration::from_millis(self.unix.load(Ordering::SeqCst))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_taken_down_once_and_a_slow_clock_is_not() {
        let clock = Arc::new(Hands { boot: 0.into(), unix: 1_000_000.into() });
        let (audit, events) = Audit::double();
        let stop = CancellationToken::new();
        let watch = tokio::spawn(run(clock.clone(), audit.clone(), stop.clone()));
        tokio::task::yield_now().await;
        for unix_step in [10_000, 11_000, 3_610_000, 10_000, -90_000_i64] {
            clock.boot.fetch_add(10_000, Ordering::SeqCst);
            clock.unix.store(
                clock.unix.load(Ordering::SeqCst).saturating_add_signed(unix_step),
                Ordering::SeqCst,
            );
            tokio::time::sleep(EVERY).await;
            tokio::task::yield_now().await;
        }
        stop.cancel();
        watch.await.unwrap();
        audit.record_durably(AuditEvent::AgentStopped).await;
        let jumps: Vec<AuditEvent> = events.try_iter().collect();
        let jump = |seconds| AuditEvent::ClockJumped { seconds };
        assert_eq!(jumps, [jump(3600), jump(-100), AuditEvent::AgentStopped]);
    }
}
