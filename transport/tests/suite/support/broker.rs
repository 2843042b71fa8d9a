//! A real mosquitto on loopback, with mutual TLS and the access rules of the specification.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use moai_transport::link::Endpoint;
use tempfile::TempDir;

use super::certificates::{Authority, Credentials};

/// Where Debian puts it; not on every user's path.
const MOSQUITTO: &str = "/usr/sbin/mosquitto";

/// How the broker is to be.
#[derive(Default)]
pub(crate) struct Options {
    /// Largest packet it takes and announces.
    pub(crate) max_packet_size: Option<usize>,
    /// Whether it keeps queues and retained messages over a restart.
    pub(crate) persistent: bool,
}

/// A broker that ends with the test.
pub(crate) struct Broker {
    directory: TempDir,
    authority: Authority,
    tls_port: u16,
    plain_port: u16,
    process: Option<Child>,
}

impl Broker {
    pub(crate) fn start() -> Self {
        Self::start_with(&Options::default())
    }

    pub(crate) fn start_with(options: &Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let server = authority.issue("broker", &["localhost"]);
        let (tls_port, plain_port) = (free_port(), free_port());
        let path = |name: &str| directory.path().join(name).display().to_string();
        write(directory.path(), "ca.pem", &authority.pem());
        write(directory.path(), "server.pem", &server.certificate);
        write(directory.path(), "server.key", &server.key);
        write(directory.path(), "acl", ACL);
        let mut config = String::new();
        // mosquitto started by root would otherwise become a user that cannot read the files.
        writeln!(config, "user root\nper_listener_settings true\nlog_dest stderr").unwrap();
        if let Some(max) = options.max_packet_size {
            writeln!(config, "max_packet_size {max}").unwrap();
        }
        if options.persistent {
            let directory = directory.path().display();
            writeln!(config, "persistence true\npersistence_location {directory}/").unwrap();
        }
        writeln!(
            config,
            "listener {tls_port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nacl_file {}\n\
             require_certificate true\nuse_identity_as_username true\nallow_anonymous false\n\
             listener {plain_port} 127.0.0.1\nallow_anonymous true",
            path("ca.pem"),
            path("server.pem"),
            path("server.key"),
            path("acl"),
        )
        .unwrap();
        write(directory.path(), "mosquitto.conf", &config);
        let mut broker = Self { directory, authority, tls_port, plain_port, process: None };
        broker.restart();
        broker
    }

    /// Starts it again; what it keeps, it was told to.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let mut process = Command::new(MOSQUITTO)
            .arg("-c")
            .arg(self.directory.path().join("mosquitto.conf"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosquitto is installed");
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut lines = Vec::new();
        loop {
            let line = log.next().unwrap_or_else(|| panic!("mosquitto: {lines:#?}")).unwrap();
            let is_running = line.ends_with(" running");
            lines.push(line);
            if is_running {
                break;
            }
        }
        // Somebody has to read on, or its log pipe fills and it stops.
        std::thread::spawn(move || log.for_each(drop));
        self.process = Some(process);
    }

    /// Lets it save what it keeps, and ends it.
    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(&process, "-TERM");
            process.wait().unwrap();
        }
    }

    /// Ends it without good-bye.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Halts it: connections stay open and nothing happens on them.
    pub(crate) fn freeze(&self) {
        signal(self.process.as_ref().unwrap(), "-STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        signal(self.process.as_ref().unwrap(), "-CONT");
    }

    /// The port of the listener with mutual TLS.
    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The listener with mutual TLS, for a client with this common name.
    pub(crate) fn endpoint(&self, common_name: &str) -> Endpoint {
        self.endpoint_with(&self.authority.issue(common_name, &[]))
    }

    pub(crate) fn endpoint_with(&self, credentials: &Credentials) -> Endpoint {
        self.tls_endpoint("localhost", self.authority.client(credentials))
    }

    pub(crate) fn tls_endpoint(&self, host: &str, tls: Arc<rustls::ClientConfig>) -> Endpoint {
        Endpoint { host: host.to_owned(), port: self.tls_port, tls: Some(tls) }
    }

    /// The listener without TLS and without access rules.
    pub(crate) fn plain_endpoint(&self) -> Endpoint {
        Endpoint { host: "127.0.0.1".to_owned(), port: self.plain_port, tls: None }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The access rules that docs/protocol.md gives.
pub(crate) const ACL: &str = "\
pattern write moai/v1/up/%u/#
pattern read moai/v1/down/%u/#
pattern read moai/v1/workers/+/status
user server
topic read moai/v1/up/#
topic write moai/v1/down/#
topic write moai/v1/workers/#
topic write moai/v1/models/#
user fleet
topic write moai/v1/down/+/command
topic read moai/v1/up/+/report
user acme.robot-1
topic read moai/v1/models/acme
";

fn signal(process: &Child, name: &str) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).unwrap();
}

/// A port nobody listens on. Somebody else may take it before we do; then the test says so.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
