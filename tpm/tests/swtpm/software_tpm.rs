//! A swtpm process of one test, with a state directory of its own.

use std::mem;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use moai_tpm::Tcti;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tss_esapi::handles::{AuthHandle, PcrHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Digest, DigestValues};
use tss_esapi::{Context, tcti_ldr::TctiNameConf};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Ports below the range from which the kernel takes ports of outgoing connections, and apart from
/// those of the end-to-end tests.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 10_000;
/// Test processes that run side by side have neighbouring ids: they begin this far apart.
const PORTS_PER_PROCESS: u16 = 16;

/// Held from choosing ports to listening on them.
static STARTING: Mutex<()> = Mutex::new(());

pub(crate) struct SoftwareTpm {
    state: TempDir,
    port: u16,
    process: Child,
}

/// Two adjacent free ports, the first of which is returned.
pub(crate) fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let places = u32::from(PORTS / PORTS_PER_PROCESS);
    let place = u16::try_from(std::process::id() % places).expect("below u16::MAX");
    let offset = place * PORTS_PER_PROCESS;
    for _ in 0..PORTS {
        let step = NEXT.fetch_add(2, Ordering::Relaxed);
        let port = FIRST_PORT + (offset + step % PORTS) % PORTS;
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
    panic!("no free ports");
}

pub(crate) fn tcti(port: u16) -> Tcti {
    format!("swtpm:host=127.0.0.1,port={port}").parse().expect("valid TCTI")
}

impl SoftwareTpm {
    /// Manufactures and starts a TPM; returns when it listens.
    pub(crate) fn start() -> Self {
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let state = TempDir::new().expect("temporary directory");
        let port = free_ports();
        let process = spawn(&state, port);
        drop(starting);
        Self { state, port, process }
    }

    /// Ends the process without warning.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("swtpm is our child");
        self.process.wait().expect("swtpm ends");
    }

    /// Starts it again with the same state on the same port, after [`Self::kill`] or after
    /// something else killed it.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = spawn(&self.state, self.port);
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("swtpm runs");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn tcti(&self) -> Tcti {
        tcti(self.port)
    }

    /// What another program does with the TPM, authorised by the empty password.
    pub(crate) fn other_program<T>(&self, f: impl FnOnce(&mut Context) -> T) -> T {
        self.context().execute_with_session(Some(AuthSession::Password), f)
    }

    /// The same, but the program is killed before it can tidy up.
    pub(crate) fn killed_program<T>(&self, f: impl FnOnce(&mut Context) -> T) -> T {
        let mut context = self.context();
        let outcome = context.execute_with_session(Some(AuthSession::Password), f);
        mem::forget(context);
        outcome
    }

    fn context(&self) -> Context {
        let conf: TctiNameConf = self.tcti().to_string().parse().expect("valid TCTI");
        Context::new(conf).expect("the TPM answers")
    }

    pub(crate) fn extend(&self, pcr: PcrHandle) {
        let mut values = DigestValues::new();
        let digest = Digest::try_from(vec![1; 32]).expect("32 bytes");
        values.set(HashingAlgorithm::Sha256, digest);
        self.other_program(|context| context.pcr_extend(pcr, values)).expect("PCR extended");
    }

    pub(crate) fn clear_owner(&self) {
        self.other_program(|context| context.clear(AuthHandle::Lockout))
            .expect("owner hierarchy cleared");
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The TSS library opens its sockets without close-on-exec. A swtpm that inherited one, because
/// another test was talking to its own swtpm at that moment, would keep that connection open.
const CLOSE_INHERITED: &str = r#"
for descriptor in /proc/self/fd/*; do
    descriptor=${descriptor##*/}
    if [ "$descriptor" -gt 2 ]; then eval "exec $descriptor>&-"; fi
done
exec swtpm "$@"
"#;

fn spawn(state: &TempDir, port: u16) -> Child {
    let mut process = Command::new("bash")
        .args(["-c", CLOSE_INHERITED, "swtpm"])
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={},mode=0600", state.path().display()))
        .arg("--server")
        .arg(format!("type=tcp,port={port},bindaddr=127.0.0.1"))
        .arg("--ctrl")
        .arg(format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1))
        .stdin(Stdio::null())
        .spawn()
        .expect("swtpm is installed");
    let started = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if let Some(status) = process.try_wait().expect("swtpm is our child") {
            panic!("swtpm ended: {status}");
        }
        assert!(started.elapsed() < START_TIMEOUT, "swtpm does not listen");
        thread::yield_now();
    }
    process
}
