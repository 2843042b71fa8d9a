//! A relay between the crate and swtpm that keeps what passes, tells of each command, and forges
//! answers if it is told to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use moai_tpm::Tcti;

use crate::software_tpm::{SoftwareTpm, free_ports, tcti};

/// What passed in one direction.
#[derive(Default)]
struct Tap(Mutex<Vec<u8>>);

impl Tap {
    fn record(&self, bytes: &[u8]) {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
    }

    fn contains(&self, needle: &[u8]) -> bool {
        let bytes = self.0.lock().expect("no panic");
        bytes.windows(needle.len()).any(|window| window == needle)
    }
}

/// Changes the answer to the command of this code.
type Forge = Box<dyn Fn(u32, &mut [u8]) + Send + Sync>;

struct Shared {
    commands: Tap,
    responses: Tap,
    last_command: AtomicU32,
    forge: Forge,
}

pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Calls `on_command` with the code and the bytes of each command before passing it on.
    pub(crate) fn start(
        tpm: &SoftwareTpm,
        on_command: impl Fn(u32, &[u8]) + Send + Sync + 'static,
    ) -> Self {
        Self::relaying(tpm, on_command, Box::new(|_, _| {}))
    }

    /// Lets `forge` change the answer to the command of each code before passing it on.
    pub(crate) fn forging(
        tpm: &SoftwareTpm,
        forge: impl Fn(u32, &mut [u8]) + Send + Sync + 'static,
    ) -> Self {
        Self::relaying(tpm, |_, _| {}, Box::new(forge))
    }

    fn relaying(
        tpm: &SoftwareTpm,
        on_command: impl Fn(u32, &[u8]) + Send + Sync + 'static,
        forge: Forge,
    ) -> Self {
        let port = free_ports();
        let shared = Arc::new(Shared {
            commands: Tap::default(),
            responses: Tap::default(),
            last_command: AtomicU32::new(0),
            forge,
        });
        let on_command = Arc::new(on_command);
        // Data and control channel.
        for (ours, theirs) in [(port, tpm.port()), (port + 1, tpm.port() + 1)] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ours)).expect("free port");
            let shared = Arc::clone(&shared);
            let on_command = Arc::clone(&on_command);
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    // Without a TPM behind it, the connection just ends.
                    if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, theirs)) {
                        relay(&shared, &on_command, client, server);
                    }
                }
            });
        }
        Self { port, shared }
    }

    pub(crate) fn tcti(&self) -> Tcti {
        tcti(self.port)
    }

    /// Whether `needle` passed in either direction.
    pub(crate) fn saw(&self, needle: &[u8]) -> bool {
        self.shared.commands.contains(needle) || self.shared.responses.contains(needle)
    }
}

fn relay(
    shared: &Arc<Shared>,
    on_command: &Arc<impl Fn(u32, &[u8]) + Send + Sync + 'static>,
    client: TcpStream,
    server: TcpStream,
) {
    let copy = |stream: &TcpStream| stream.try_clone().expect("descriptor");
    let (commands, on_command) = (Arc::clone(shared), Arc::clone(on_command));
    let (from, to) = (copy(&client), copy(&server));
    thread::spawn(move || {
        pump(from, to, |bytes| {
            commands.commands.record(bytes);
            if let Some(code) = bytes.get(6..10) {
                let code = u32::from_be_bytes(code.try_into().expect("four bytes"));
                commands.last_command.store(code, Ordering::SeqCst);
                on_command(code, bytes);
            }
        });
    });
    let responses = Arc::clone(shared);
    thread::spawn(move || {
        pump(server, client, |bytes| {
            responses.responses.record(bytes);
            (responses.forge)(responses.last_command.load(Ordering::SeqCst), bytes);
        });
    });
}

fn pump(mut from: TcpStream, mut to: TcpStream, observe: impl Fn(&mut [u8])) {
    let mut buffer = [0; 8192];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        observe(&mut buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    // Either may have ended already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
