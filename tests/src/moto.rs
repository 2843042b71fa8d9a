//! AWS KMS on loopback: the server of moto, a program in Python.
//!
//! Invariants:
//! - it runs from the environment that `cargo xtask setup` makes in the target directory;
//! - keys live in its memory: a restart forgets them;
//! - whoever calls it needs [`ENVIRONMENT`], which keeps the client off the machine's own
//!   credentials and off the network.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ports::Ports;
use crate::process::{Launch, Process, STEP};
use crate::python::interpreter;

/// The region the keys are in.
pub const REGION: &str = "eu-central-1";
/// The alias of the one key there is.
pub const ALIAS: &str = "alias/moai";

/// What the environment of a client must hold.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    ("AWS_ACCESS_KEY_ID", "test"),
    ("AWS_SECRET_ACCESS_KEY", "test"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
    ("AWS_CONFIG_FILE", "/dev/null"),
    ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
];

/// Longest answer that is read.
const MAX_ANSWER_LEN: u64 = 64 * 1024;

/// A running server.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    ports: Ports,
}

impl Moto {
    /// Starts a server with one symmetric key, called [`ALIAS`]; logs go to `directory`.
    ///
    /// # Errors
    /// It is not installed or does not come up.
    pub async fn start(directory: &Path) -> Result<Self> {
        let ports = Ports::reserve()?;
        let port = ports.first();
        let process = Launch::new("moto", &interpreter("moto")?, directory)
            .args(["-m", "moto.server", "--host", "127.0.0.1", "--port", &port.to_string()])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .spawn()?;
        crate::wait_for_port(&process, port).await?;
        let moto = Self { process, ports };
        let key = moto.call("CreateKey", "{}").await?;
        let id = key["KeyMetadata"]["KeyId"].as_str().context("moto made no key")?;
        let alias = serde_json::json!({ "AliasName": ALIAS, "TargetKeyId": id });
        moto.call("CreateAlias", &alias.to_string()).await?;
        Ok(moto)
    }

    /// Where it listens on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.first()
    }

    /// The section `[kms]` of an agent that uses the key.
    #[must_use]
    pub fn toml(&self) -> String {
        let endpoint = format!("http://127.0.0.1:{}", self.port());
        format!("[kms]\nkey = {ALIAS:?}\nregion = {REGION:?}\nendpoint = {endpoint:?}\n")
    }

    /// Ends the server; its port stays reserved, so nobody answers there.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&self) -> Result<()> {
        self.process.terminate(STEP).await.map(drop)
    }

    /// Calls an action of KMS; an empty answer is `null`.
    ///
    /// # Errors
    /// No answer, or one that is no success.
    pub async fn call(&self, action: &str, body: &str) -> Result<serde_json::Value> {
        let request = format!(
            "POST / HTTP/1.0\r\nHost: kms.{REGION}.amazonaws.com\r\n\
             Content-Type: application/x-amz-json-1.1\r\nX-Amz-Target: TrentService.{action}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/kms/aws4_request\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len(),
        );
        let exchange = async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.first())).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.take(MAX_ANSWER_LEN).read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = tokio::time::timeout(STEP, exchange).await;
        let answer = answer.with_context(|| format!("no answer to {action}"))??;
        let (head, body) = answer.split_once("\r\n\r\n").context("this is no HTTP")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(status == "200", "{action} fails: {answer}\n{}", self.process.log().tail());
        Ok(if body.is_empty() { serde_json::Value::Null } else { serde_json::from_str(body)? })
    }
}
