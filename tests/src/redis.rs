//! Redis on loopback, as the key store that servers share: under TLS and with a password.
//!
//! Invariants:
//! - it keeps nothing on a disk: a restart forgets everything;
//! - it keeps its port over restarts.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, TlsCertificates};

use crate::pki::{Credentials, Pki};
use crate::ports::Ports;
use crate::process::{Launch, Process, STEP, program};

/// Its password.
pub const PASSWORD: &str = "a-password-of-tests";

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    ports: Ports,
    directory: PathBuf,
    ca: PathBuf,
}

impl Redis {
    /// Starts a Redis whose certificate is from `pki`; its files go to `directory`.
    ///
    /// # Errors
    /// It is not installed or does not come up.
    pub async fn start(directory: &Path, pki: &Pki) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        let ports = Ports::reserve()?;
        let Credentials { ca, certificate, key } = pki.server()?;
        let config = format!(
            "bind 127.0.0.1\nport 0\ntls-port {}\ntls-auth-clients no\n\
             tls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
             requirepass {PASSWORD}\nsave \"\"\nappendonly no\ndir {}\n",
            ports.first(),
            certificate.display(),
            key.display(),
            ca.display(),
            directory.display(),
        );
        std::fs::write(directory.join("redis.conf"), config)?;
        let ca = pki.ca();
        let mut redis = Self { process: None, ports, directory, ca };
        redis.start_again().await?;
        Ok(redis)
    }

    /// Starts it again on its port, empty.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        let process = Launch::new("redis", &program("redis-server")?, &self.directory)
            .args([self.directory.join("redis.conf")])
            .spawn()?;
        crate::wait_for_port(&process, self.ports.first()).await?;
        self.process = Some(process);
        Ok(())
    }

    /// The process.
    ///
    /// # Errors
    /// It is stopped.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("Redis is stopped")
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not end within [`STEP`].
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.terminate(STEP).await?;
        }
        Ok(())
    }

    /// Where it is, with its password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("rediss://:{PASSWORD}@localhost:{}/0", self.ports.first())
    }

    /// PEM file with the authority that signed its certificate.
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// The section `[store]` of a server that uses it.
    #[must_use]
    pub fn toml(&self) -> String {
        let (url, ca) = (self.url(), crate::settings::quoted(&self.ca));
        format!("[store]\nkind = \"redis\"\nurl = \"{url}\"\nca = {ca}\n")
    }

    /// A connection of a test's own.
    ///
    /// # Errors
    /// It does not let us in.
    pub async fn connect(&self) -> Result<MultiplexedConnection> {
        let root_cert = Some(std::fs::read(&self.ca)?);
        let certificates = TlsCertificates { client_tls: None, root_cert };
        let client = Client::build_with_tls(self.url(), certificates)?;
        Ok(client.get_multiplexed_async_connection().await?)
    }

    /// Everything it holds: the name of each key, and its type and bytes.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn dump(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut connection = self.connect().await?;
        let names: Vec<String> = Cmd::keys("*").query_async(&mut connection).await?;
        let mut all = Vec::new();
        for name in names {
            let kind: String = redis::cmd("TYPE").arg(&name).query_async(&mut connection).await?;
            let read = match kind.as_str() {
                "hash" => Cmd::hgetall(&name),
                "zset" => Cmd::zrange(&name, 0, -1),
                _ => Cmd::get(&name),
            };
            let parts: redis::Value = read.query_async(&mut connection).await?;
            let mut bytes = Vec::new();
            flatten(&parts, &mut bytes);
            all.push((name, bytes));
        }
        all.sort();
        Ok(all)
    }
}

/// Strings one after the other, as they are.
fn flatten(value: &redis::Value, bytes: &mut Vec<u8>) {
    match value {
        redis::Value::BulkString(part) => {
            bytes.extend_from_slice(part);
            bytes.push(b'\n');
        }
        redis::Value::Array(parts) => parts.iter().for_each(|part| flatten(part, bytes)),
        redis::Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
            flatten(key, bytes);
            flatten(value, bytes);
        }),
        other => bytes.extend_from_slice(format!("{other:?}\n").as_bytes()),
    }
}
