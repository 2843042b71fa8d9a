//! The three calls of AWS KMS, each blocking.
//!
//! Invariants:
//! - each call runs on the calling thread in a runtime of its own, with credentials looked up anew,
//!   so nothing has to be repaired after an outage or a change of credentials;
//! - no call takes longer than [`DEADLINE`], whatever the network does;
//! - what the service answers in the clear is wiped after use; the client library's own copies are
//!   left to the zeroizing allocator. Its log shows no bodies unless somebody sets
//!   `LOG_SENSITIVE_BODIES` or `LOG_SIGNABLE_BODY` in the agent's environment and logs at trace.

use std::future::Future;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::ProvideCredentials;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, EncryptionAlgorithmSpec};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use zeroize::Zeroizing;

use super::{Context, KmsError};
use crate::config::KmsConfig;

/// For a whole call: credentials, connection, two attempts.
const DEADLINE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(8);
const ATTEMPTS: u32 = 2;

/// A data key in the clear and wrapped by the service.
pub(super) struct DataKey {
    pub(super) plain: Box<Zeroizing<[u8; 32]>>,
    pub(super) wrapped: Vec<u8>,
}

/// Random bytes of the service.
pub(super) fn random(config: &KmsConfig) -> Result<Box<Zeroizing<[u8; 32]>>, KmsError> {
    call(config, async |client| {
        let answer = client.generate_random().number_of_bytes(32).send().await;
        key(answer.map_err(|error| KmsError::from_call(&error, config))?.plaintext)
    })
}

/// A fresh data key, bound to `context`.
pub(super) fn data_key(config: &KmsConfig, context: Context<'_>) -> Result<DataKey, KmsError> {
    call(config, async |client| {
        let mut request =
            client.generate_data_key().key_id(&config.key).key_spec(DataKeySpec::Aes256);
        for (name, value) in context.pairs() {
            request = request.encryption_context(name, value);
        }
        let answer = request.send().await;
        let answer = answer.map_err(|error| KmsError::from_call(&error, config))?;
        let missing = KmsError::Answer { what: "no wrapped data key" };
        let wrapped = answer.ciphertext_blob.ok_or(missing)?.into_inner();
        Ok(DataKey { plain: key(answer.plaintext)?, wrapped })
    })
}

/// The data key in the clear again.
pub(super) fn unwrap(
    config: &KmsConfig,
    context: Context<'_>,
    wrapped: &[u8],
) -> Result<Box<Zeroizing<[u8; 32]>>, KmsError> {
    call(config, async |client| {
        let mut request = client
            .decrypt()
            .key_id(&config.key)
            .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
            .ciphertext_blob(Blob::new(wrapped));
        for (name, value) in context.pairs() {
            request = request.encryption_context(name, value);
        }
        let answer = request.send().await;
        key(answer.map_err(|error| KmsError::from_call(&error, config))?.plaintext)
    })
}

fn key(plaintext: Option<Blob>) -> Result<Box<Zeroizing<[u8; 32]>>, KmsError> {
    let bytes = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
    let mut key = Box::new(Zeroizing::new([0; 32]));
    if bytes.len() != key.len() {
        return Err(KmsError::Answer { what: "no plaintext of 32 bytes" });
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}

fn call<T>(
    config: &KmsConfig,
    operation: impl AsyncFnOnce(Client) -> Result<T, KmsError>,
) -> Result<T, KmsError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(KmsError::Runtime)?;
    let result = runtime
        .block_on(within_deadline(config, async { operation(connect(config).await?).await }));
    // A name lookup that hangs must not hold up the caller.
    runtime.shutdown_background();
    result
}

async fn within_deadline<T>(
    config: &KmsConfig,
    call: impl Future<Output = Result<T, KmsError>>,
) -> Result<T, KmsError> {
    let late = |_| KmsError::unreachable(config, format!("no answer within {DEADLINE:?}"));
    tokio::time::timeout(DEADLINE, call).await.map_err(late)?
}

async fn connect(config: &KmsConfig) -> Result<Client, KmsError> {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT);
    let shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(Region::new(config.region.clone()))
        .timeout_config(timeouts.build())
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .load()
        .await;
    let none = || KmsError::Credentials { reason: "no source of credentials".to_owned() };
    let source = shared.credentials_provider().ok_or_else(none)?;
    let credentials = source.provide_credentials().await;
    let credentials = credentials
        .map_err(|error| KmsError::Credentials { reason: super::error::chain(&error) })?;
    // Of the KMS client alone: the endpoint must not redirect whoever issues the credentials.
    let mut client = aws_sdk_kms::config::Builder::from(&shared).credentials_provider(credentials);
    client.set_endpoint_url(config.endpoint.clone());
    Ok(Client::from_conf(client.build()))
}
