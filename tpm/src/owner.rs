//! The thread that owns the TPM.
//!
//! Invariants:
//! 1. The resource is opened, used and dropped on this thread only.
//! 2. A caller waits at most the deadline. A job that is still queued when its caller has given
//!    up is not run; one that is running is finished and its answer dropped.
//! 3. The queue is bounded; when it is full the caller is told so at once.
//! 4. A job that panics or breaks the connection costs the resource, never the thread: the next
//!    job finds it opened anew.
//! 5. After a job the stack it ran on is overwritten: the C library and its wrapper leave copies
//!    of secrets there.
//! 6. The thread ends when the last [`Owner`] is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use zeroize::zeroize_stack;

use crate::code::spares_connection;
use crate::error::TpmError;

const QUEUE_LEN: usize = 16;

/// More than a job reaches down the stack.
const STACK_LEN: usize = 64 * 1024;

/// Handle to a thread that owns an `R`.
pub(crate) struct Owner<R> {
    queue: SyncSender<Job<R>>,
    deadline: Duration,
}

impl<R> Clone for Owner<R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), deadline: self.deadline }
    }
}

/// Gives the answer to the caller and says whether the resource is still good.
type Work<R> = Box<dyn FnOnce(Result<&mut R, TpmError>) -> bool + Send>;

struct Job<R> {
    /// When its caller gives up; a deadline beyond the clock's range is none.
    abandoned_at: Option<Instant>,
    work: Work<R>,
}

impl<R: 'static> Owner<R> {
    /// Starts the thread. `open` runs there, when the first job comes.
    pub(crate) fn start(
        deadline: Duration,
        open: impl FnMut() -> Result<R, TpmError> + Send + 'static,
    ) -> Result<Self, TpmError> {
        let (queue, jobs) = mpsc::sync_channel(QUEUE_LEN);
        thread::Builder::new()
            .name("tpm-owner".to_owned())
            .spawn(move || run(&jobs, open))
            .map_err(|_| TpmError::OwnerStopped)?;
        Ok(Self { queue, deadline })
    }

    /// Runs `work` on the owner thread and waits for its answer.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut R) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let work = move |opened: Result<&mut R, TpmError>| {
            let outcome = opened.and_then(work);
            let good = outcome.as_ref().err().is_none_or(spares_connection);
            // The caller may have given up; then the answer is dropped here, and wiped.
            drop(reply.send(outcome));
            good
        };
        let job =
            Job { abandoned_at: Instant::now().checked_add(self.deadline), work: Box::new(work) };
        self.queue.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) => TpmError::Busy,
            TrySendError::Disconnected(_) => TpmError::OwnerStopped,
        })?;
        answer.recv_timeout(self.deadline).unwrap_or_else(|missing| {
            Err(match missing {
                RecvTimeoutError::Timeout => TpmError::Deadline { after: self.deadline },
                RecvTimeoutError::Disconnected => TpmError::Panicked,
            })
        })
    }
}

fn run<R>(jobs: &Receiver<Job<R>>, mut open: impl FnMut() -> Result<R, TpmError>) {
    let mut resource = None;
    while let Ok(job) = jobs.recv() {
        if job.abandoned_at.is_some_and(|moment| Instant::now() >= moment) {
            continue;
        }
        let good = contained(|| {
            let opened = match &mut resource {
                Some(resource) => Ok(resource),
                slot => open().map(|opened| slot.insert(opened)),
            };
            (job.work)(opened)
        });
        if good != Some(true) {
            let broken = resource.take();
            let _ = contained(|| drop(broken));
        }
        zeroize_stack::<STACK_LEN>();
    }
}

/// Runs `f`; `None` when it panicked. Whatever it touched is thrown away then.
fn contained<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::command::Command;

    const PATIENT: Duration = Duration::from_mins(1);

    /// An owner of a number that tells how often it was opened.
    fn counting(deadline: Duration) -> Owner<usize> {
        let opened = AtomicUsize::new(0);
        Owner::start(deadline, move || Ok(opened.fetch_add(1, Ordering::SeqCst) + 1))
            .expect("thread starts")
    }

    fn times_opened(owner: &Owner<usize>) -> usize {
        owner.call(|count| Ok(*count)).expect("call succeeds")
    }

    /// Occupies the owner thread until the returned sender is dropped.
    fn occupy(owner: &Owner<usize>) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let (busy, is_busy) = mpsc::channel();
        let owner = owner.clone();
        thread::spawn(move || {
            owner.call(move |_| {
                busy.send(()).expect("test waits");
                let _ = released.recv();
                Ok(())
            })
        });
        is_busy.recv_timeout(PATIENT).expect("job starts");
        release
    }

    /// How many bytes of a mark are at an address of this process.
    fn marks(address: usize) -> usize {
        let mut bytes = vec![0; MARK_LEN];
        let memory = std::fs::File::open("/proc/self/mem").expect("procfs");
        let offset = u64::try_from(address).expect("addresses have 64 bits");
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, offset).expect("mapped");
        // Single bytes are also those of addresses, which reading the memory leaves there.
        bytes.chunks(8).filter(|word| *word == [0xa5; 8]).count() * 8
    }

    const MARK_LEN: usize = 16 * 1024;

    #[inline(never)]
    fn mark_stack() -> usize {
        let mut secret = [0xa5_u8; MARK_LEN];
        std::hint::black_box(&mut secret).as_ptr().addr()
    }

    #[test]
    fn what_a_job_left_on_the_stack_is_overwritten_before_the_next() {
        let owner = counting(PATIENT);
        let marked = owner.call(|_| {
            let address = mark_stack();
            Ok((address, marks(address)))
        });
        let (address, left) = marked.expect("call succeeds");
        assert!(left > MARK_LEN / 2, "or the test looks in the wrong place");
        assert_eq!(owner.call(move |_| Ok(marks(address))), Ok(0));
    }

    #[test]
    fn a_panic_costs_the_resource_but_not_the_thread() {
        let owner = counting(PATIENT);
        assert_eq!(times_opened(&owner), 1);
        let outcome: Result<(), _> = owner.call(|_| panic!("fault injected by the test"));
        assert_eq!(outcome, Err(TpmError::Panicked));
        assert_eq!(times_opened(&owner), 2);
    }

    #[test]
    fn a_lost_connection_is_opened_anew_and_a_refusal_is_not() {
        let owner = counting(PATIENT);
        let refused: Result<(), _> = owner.call(|_| Err(TpmError::Tampered));
        assert_eq!(refused, Err(TpmError::Tampered));
        assert_eq!(times_opened(&owner), 1);
        let command = Command::Unseal;
        let lost: Result<(), _> = owner.call(move |_| Err(TpmError::ConnectionLost { command }));
        assert_eq!(lost, Err(TpmError::ConnectionLost { command }));
        assert_eq!(times_opened(&owner), 2);
    }

    #[test]
    fn a_job_whose_caller_gave_up_is_not_run() {
        let owner = counting(PATIENT);
        let release = occupy(&owner);
        let hasty = Owner { deadline: Duration::from_millis(20), ..owner.clone() };
        let ran = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&ran);
        let outcome = hasty.call(move |_| {
            mark.store(true, Ordering::SeqCst);
            Ok(())
        });
        assert!(matches!(outcome, Err(TpmError::Deadline { .. })));
        drop(release);
        assert_eq!(times_opened(&owner), 1);
        assert!(!ran.load(Ordering::SeqCst));
    }

    #[test]
    fn a_full_queue_is_refused_at_once() {
        let owner = counting(PATIENT);
        let release = occupy(&owner);
        let hasty = Owner { deadline: Duration::ZERO, ..owner.clone() };
        for _ in 0..QUEUE_LEN {
            let outcome = hasty.call(|_| Ok(()));
            assert!(matches!(outcome, Err(TpmError::Deadline { .. })));
        }
        assert_eq!(owner.call(|_| Ok(())), Err(TpmError::Busy));
        drop(release);
    }
}
