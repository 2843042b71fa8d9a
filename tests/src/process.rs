//! Child processes: seen, awaited, and never left behind.
//!
//! Invariants:
//! - a child dies with the process that started it, even if that one is killed -9 (`setpriv
//!   --pdeathsig KILL`). The kernel sends that signal when the *thread* that forked ends, so each
//!   child has a supervisor thread of its own that lives exactly as long as the child;
//! - each child leads a process group of its own: Ctrl-C reaches the parent alone, which then
//!   stops its children in order;
//! - signals go through a pidfd and so never reach a stranger that inherited the number;
//! - every wait has a deadline and says what was awaited, with the last lines of the log.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::log::{Log, Recorder};

/// How long a step may take that is not one of the slow ones (key generation, evaluation).
pub const STEP: Duration = Duration::from_secs(30);

/// Looks a program up in `PATH` and in the system directories an ordinary user's `PATH` lacks.
///
/// # Errors
/// It is not installed.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not installed; run `cargo xtask setup`"))
}

/// Finds one of the project's own binaries: in `MOAI_BIN_DIR`, else beside the running executable.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("MOAI_BIN_DIR") {
        let path = Path::new(&directory).join(name);
        return path.is_file().then_some(path).with_context(|| {
            format!("there is no {name} in MOAI_BIN_DIR={}", directory.display())
        });
    }
    let executable = std::env::current_exe().context("cannot tell where this executable lies")?;
    let mut candidates = executable.ancestors().skip(1).map(|directory| directory.join(name));
    candidates
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} has not been built; run `cargo build --workspace`"))
}

/// A command line that is about to become a [`Process`].
#[derive(Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log_directory: PathBuf,
    input: Option<PathBuf>,
}

impl Launch {
    /// Prepares `program`; its output goes to files called after `name` in `log_directory`.
    #[must_use]
    pub fn new(name: &str, program: &Path, log_directory: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log_directory: log_directory.to_owned(),
            input: None,
        }
    }

    /// Gives the process a file as standard input.
    #[must_use]
    pub fn stdin(mut self, path: &Path) -> Self {
        self.input = Some(path.to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// `setpriv` is missing, a log file cannot be made, or the fork failed. A program that cannot
    /// be executed shows as a process that exits with 127.
    pub fn spawn(self) -> Result<Process> {
        let setpriv = program("setpriv")?;
        let [out, err] = self.log_files()?;
        let input = match &self.input {
            Some(path) => File::open(path)?.into(),
            None => Stdio::null(),
        };
        let mut command = Command::new(setpriv);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(&self.arguments)
            .env("TSS2_LOG", "all+none")
            .env("RUST_BACKTRACE", "1")
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let (log, recorder) = Log::new(&self.name);
        let (started, start) = mpsc::channel();
        let supervisor = thread::Builder::new()
            .name(format!("supervise {}", self.name))
            .spawn(move || supervise(command, out, err, &recorder, &started))?;
        let (id, pidfd) = start
            .recv()
            .context("the supervisor thread is gone")?
            .with_context(|| format!("cannot start {}", self.name))?;
        Ok(Process { id, pidfd, log, supervisor: Some(supervisor) })
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// It cannot be started or is not done within `limit`; then it is killed.
    pub async fn run(self, limit: Duration) -> Result<Finished> {
        let process = self.spawn()?;
        let status = process.wait(limit).await?;
        Ok(Finished { status, log: process.log.clone() })
    }

    /// A fresh pair of files per start, so that a restart keeps the log of the run before.
    fn log_files(&self) -> Result<[File; 2]> {
        fs::create_dir_all(&self.log_directory)?;
        let unused = (1..10_000)
            .map(|run| self.log_directory.join(format!("{}.{run}.out", self.name)))
            .find(|path| !path.exists())
            .context("10,000 log files are enough")?;
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("cannot create {}", path.display()))
        };
        Ok([create(&unused)?, create(&unused.with_extension("err"))?])
    }
}

/// What a command that ran to its end left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub log: Log,
}

impl Finished {
    /// Returns the log if the command was successful.
    ///
    /// # Errors
    /// It was not; the error shows what it wrote.
    pub fn success(self) -> Result<Log> {
        if self.status.success() {
            return Ok(self.log);
        }
        bail!("{} ended with {}\n{}", self.log.name(), self.status, self.log.tail())
    }
}

type Started = std::io::Result<(u32, OwnedFd)>;

fn supervise(
    mut command: Command,
    out: File,
    err: File,
    recorder: &Recorder,
    started: &mpsc::Sender<Started>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // The receiver waits for exactly one message, so it is still there.
            let _ = started.send(Err(error));
            return;
        }
    };
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    if pidfd.is_err() {
        let _ = child.kill();
    }
    let _ = started.send(pidfd.map(|fd| (child.id(), fd)).map_err(std::io::Error::from));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Some(pipe) = stderr {
                recorder.copy(pipe, err);
            }
        });
        if let Some(pipe) = stdout {
            recorder.copy(pipe, out);
        }
    });
    recorder.ended(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(255 << 8)));
}

/// Memory of a process in KiB, as `/proc/PID/status` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub resident_kib: u64,
    /// Largest resident size so far (`VmHWM`).
    pub peak_kib: u64,
}

/// A running child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    id: u32,
    pidfd: OwnedFd,
    log: Log,
    supervisor: Option<JoinHandle<()>>,
}

impl Process {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        self.log.exit()
    }

    /// Waits for a line that contains `pattern`; see [`Log::wait_for`].
    ///
    /// # Errors
    /// No such line within `limit`, or the process ended without one.
    pub async fn wait_for_line(&self, pattern: &str, limit: Duration) -> Result<String> {
        self.log.wait_for(pattern, limit).await
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// It is still running after `limit`.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        self.log.wait_for_exit(limit).await
    }

    /// `kill -9`, then waits for the end.
    ///
    /// # Errors
    /// The kernel refuses the signal.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.end(Signal::KILL, STEP).await
    }

    /// SIGTERM, then waits for the end; a process that has ended already is no error.
    ///
    /// # Errors
    /// It is still running after `limit`.
    pub async fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        self.end(Signal::TERM, limit).await
    }

    /// SIGINT, as from Ctrl-C, then waits for the end.
    ///
    /// # Errors
    /// It is still running after `limit`.
    pub async fn interrupt(&self, limit: Duration) -> Result<ExitStatus> {
        self.end(Signal::INT, limit).await
    }

    /// SIGHUP, which asks a daemon to read its configuration again.
    ///
    /// # Errors
    /// The process has ended.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// SIGSTOP: the process hangs, its connections stay open.
    ///
    /// # Errors
    /// The process has ended.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: the process goes on.
    ///
    /// # Errors
    /// The process has ended.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// What the process occupies.
    ///
    /// # Errors
    /// The process has ended.
    pub fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id))?;
        let kib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
                .with_context(|| format!("{} has no {key} line any more", self.log.name()))
        };
        Ok(Memory { resident_kib: kib("VmRSS:")?, peak_kib: kib("VmHWM:")? })
    }

    /// The processor time that the process has used.
    ///
    /// # Errors
    /// The process has ended.
    pub fn processor_time(&self) -> Result<Duration> {
        /// The kernel's unit for programs (`USER_HZ`).
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id))?;
        let parse = || {
            // The name of the program is in parentheses and may hold spaces; after it come the
            // fields from the third on (proc(5)): user and system time are the 14th and the 15th.
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
            let user: u32 = fields.next()?.parse().ok()?;
            let system: u32 = fields.next()?.parse().ok()?;
            Some(TICK * (user + system))
        };
        parse().with_context(|| format!("{} shows no times any more", self.log.name()))
    }

    async fn end(&self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => self.wait(limit).await,
            Err(error) => Err(error).with_context(|| format!("cannot end {}", self.log.name())),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.pidfd, signal)
            .with_context(|| format!("cannot signal {}\n{}", self.log.name(), self.log.tail()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if the process has ended by itself.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if let Some(supervisor) = self.supervisor.take() {
            // Its ports and files are free only when it is gone; SIGKILL takes milliseconds.
            let _ = supervisor.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, logs: &Path) -> Launch {
        Launch::new("shell", Path::new("/bin/sh"), logs).args(["-c", script])
    }

    #[tokio::test]
    async fn lines_are_awaited_and_kept_in_files() {
        let scratch = tempfile::tempdir().unwrap();
        let script = "echo \"$GREETING\"; echo there >&2; exit 3";
        let process = shell(script, scratch.path()).env("GREETING", "hello").spawn().unwrap();
        assert_eq!(process.wait_for_line("ello", STEP).await.unwrap(), "hello");
        assert_eq!(process.wait(STEP).await.unwrap().code(), Some(3));
        assert_eq!(process.terminate(STEP).await.unwrap().code(), Some(3), "not again");
        let written = |name| fs::read_to_string(scratch.path().join(name)).unwrap();
        assert_eq!(written("shell.1.out"), "hello\n");
        assert_eq!(written("shell.1.err"), "there\n");
        let error = process.wait_for_line("never", STEP).await.unwrap_err().to_string();
        assert!(error.contains("ended without writing \"never\""), "{error}");
        assert!(error.contains("    there"), "{error}");
    }

    #[tokio::test]
    async fn a_deadline_names_what_was_awaited() {
        let scratch = tempfile::tempdir().unwrap();
        let process = shell("echo up; exec sleep 600", scratch.path()).spawn().unwrap();
        process.wait_for_line("up", STEP).await.unwrap();
        let limit = Duration::from_millis(1);
        let error = process.wait_for_line("never", limit).await.unwrap_err().to_string();
        assert!(error.contains("did not write \"never\" within 1ms"), "{error}");
        assert!(process.memory().unwrap().peak_kib > 0);
        assert_eq!(process.terminate(STEP).await.unwrap().signal(), Some(Signal::TERM.as_raw()));
    }

    #[tokio::test]
    async fn a_dropped_process_is_dead_even_if_frozen() {
        let scratch = tempfile::tempdir().unwrap();
        let process = shell("echo up; exec sleep 600", scratch.path()).spawn().unwrap();
        process.wait_for_line("up", STEP).await.unwrap();
        process.freeze().unwrap();
        let log = process.log().clone();
        drop(process);
        assert_eq!(log.exit().unwrap().signal(), Some(Signal::KILL.as_raw()));
    }

    /// A process that starts a child through this module and is killed -9: this test, started
    /// again by itself. The child holds a lock, which the kernel frees when it dies.
    #[tokio::test]
    async fn children_die_with_a_parent_that_is_killed() {
        const LOCK: &str = "MOAI_TEST_LOCK";
        const NAME: &str = "process::tests::children_die_with_a_parent_that_is_killed";
        let scratch = tempfile::tempdir().unwrap();
        if std::env::var_os(LOCK).is_some() {
            let script = format!("exec 9>\"${LOCK}\"; flock 9; echo locked; exec sleep 40");
            let child = shell(&script, scratch.path()).spawn().unwrap();
            println!("child: {}", child.wait_for_line("locked", STEP).await.unwrap());
            child.wait(STEP * 2).await.unwrap();
            return;
        }
        let path = scratch.path().join("lock");
        let parent = Launch::new("parent", &std::env::current_exe().unwrap(), scratch.path())
            .args(["--exact", "--nocapture", NAME])
            .env(LOCK, &path)
            .spawn()
            .unwrap();
        parent.wait_for_line("child: locked", STEP).await.unwrap();
        let lock = File::open(path).unwrap();
        assert!(lock.try_lock().is_err(), "the child holds the lock");
        parent.kill().await.unwrap();
        let (freed, wait) = tokio::sync::oneshot::channel();
        // Not a task: if the child lives on, the test must fail without waiting for this.
        thread::spawn(move || freed.send(lock.lock()));
        tokio::time::timeout(STEP, wait).await.expect("the child lives on").unwrap().unwrap();
    }
}
