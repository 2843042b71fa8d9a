//! Sessions in Redis or Valkey: the store that many workers share.
//!
//! ```text
//! moai:{tenant}:session:{tenant}.{robot}.{session}   hash, lives as long as the session
//!     fingerprint, number, expires, until, len, manifest, attested, registered
//!     c0, c1, …                                      chunks, as they arrive
//! moai:{tenant}:open    sorted set: {name}:{key length} by the moment the session is over
//! moai:{tenant}:ended   sorted set: {name} by the moment its last open expires; of open sessions,
//!                       too, so that the name stays when the session's hash has expired
//! ```
//!
//! Invariants:
//! - whatever changes more than one key, or depends on what it reads, is one script;
//! - every key has a TTL from its first write on: what no server sweeps, Redis forgets by itself;
//! - all keys of a tenant have one hash tag, and no script touches two tenants;
//! - a Redis that does not answer is asked again after [`PAUSE`] only, so that a worker goes on with
//!   what it has in memory; the password is in no log and no error.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use moai_transport::ids::{Digest, Tenant};
use moai_transport::message::Manifest;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisError, Script, TlsCertificates,
};
use tokio::time::Instant;

use super::{
    Answer, Budget, Exceeded, Found, Held, Opened, Record, SessionKey, Store, StoreError, Stored,
    UnixMillis, Usage,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a Redis that failed is left alone.
const PAUSE: Duration = Duration::from_millis(500);
/// Chunks that are fetched in one request.
const BATCH: usize = 16;
/// Longest URL.
const MAX_URL_LEN: usize = 4096;

const PUT: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1";
const DISCARD: &str = "local fields = {'registered'}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.match(field, '^c%d+$') then table.insert(fields, field) end
end
return redis.call('HDEL', KEYS[1], unpack(fields))";
const END: &str = "local len = redis.call('HGET', KEYS[1], 'len')
if not len then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1] .. ':' .. len)
return 1";

/// Where a Redis is, and with which password it opens. Never shown.
#[derive(Clone)]
pub struct RedisUrl(Box<ConnectionInfo>);

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl")
    }
}

/// Why a text is no URL of a Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisUrlError {
    /// It cannot be understood. What it was is not repeated: it may hold a password.
    #[error("not a URL such as rediss://user:password@host:6379/0")]
    Malformed,
    /// A file of it cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

impl std::str::FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > MAX_URL_LEN {
            return Err(RedisUrlError::Malformed);
        }
        text.into_connection_info()
            .map(|info| Self(Box::new(info)))
            .map_err(|_| RedisUrlError::Malformed)
    }
}

impl RedisUrl {
    /// The URL in a file.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn from_file(path: &Path) -> Result<Self, RedisUrlError> {
        std::fs::read_to_string(path)?.parse()
    }

    /// Whether the URL holds a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.0.redis_settings().password().is_some()
    }

    /// Whether the connection is under TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { .. })
    }
}

/// Sessions in Redis.
pub struct RedisStore {
    connection: ConnectionManager,
    /// Not asked before.
    away_until: Mutex<Option<Instant>>,
    tenants: Vec<Tenant>,
    scripts: Scripts,
}

struct Scripts {
    open: Script,
    put: Script,
    discard: Script,
    end: Script,
}

impl RedisStore {
    /// A store at this URL, under TLS with the authorities in `ca_pem` or else the system's. Nothing
    /// is connected yet: a Redis that is away now may come later. Sweeps look after `tenants`.
    ///
    /// # Errors
    /// URL and authorities do not go together.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(
        url: &RedisUrl,
        ca_pem: Option<Vec<u8>>,
        tenants: impl IntoIterator<Item = Tenant>,
    ) -> Result<Self, StoreError> {
        let unusable = |error: RedisError| StoreError::Unusable(error.to_string());
        let client = if url.is_tls() {
            let certificates = TlsCertificates { client_tls: None, root_cert: ca_pem };
            Client::build_with_tls(url.0.as_ref().clone(), certificates)
        } else {
            Client::open(url.0.as_ref().clone())
        };
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = ConnectionManager::new_lazy_with_config(client.map_err(unusable)?, config)
            .map_err(unusable)?;
        let scripts = Scripts {
            open: Script::new(include_str!("open.lua")),
            put: Script::new(PUT),
            discard: Script::new(DISCARD),
            end: Script::new(END),
        };
        let tenants = tenants.into_iter().collect();
        Ok(Self { connection, away_until: Mutex::new(None), tenants, scripts })
    }

    /// Lets a request through unless Redis failed a moment ago, and notes if it fails now.
    async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, RedisError>> + Send,
    ) -> Result<T, StoreError> {
        let until = *self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| Instant::now() < until) {
            let message = "it did not answer a moment ago".to_owned();
            return Err(StoreError::Unavailable(message));
        }
        let answer = request.await;
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let text = error.to_string();
        // Of a pipeline that failed in parts, the first part says why.
        let parts = error.clone().into_server_errors();
        let first = parts.as_ref().and_then(|parts| parts.first()).map(|(_, part)| part.code());
        match error.code().or(first) {
            Some("OOM") => Err(StoreError::Full(text)),
            Some("WRONGTYPE" | "NOPERM" | "ERR") => Err(StoreError::Unusable(text)),
            _ => {
                let mut away = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
                *away = Some(Instant::now() + PAUSE);
                Err(StoreError::Unavailable(text))
            }
        }
    }

    async fn query<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, StoreError> {
        let mut connection = self.connection.clone();
        self.ask(pipeline.query_async(&mut connection)).await
    }
}

fn tenant_key(tenant: &Tenant, what: &str) -> String {
    // In Redis braces mark the part of a key that decides where it is kept.
    format!("moai:{{{tenant}}}:{what}")
}

fn session_key(key: &SessionKey) -> String {
    tenant_key(&key.identity.tenant, &format!("session:{key}"))
}

fn chunk_field(index: usize) -> String {
    format!("c{index}")
}

/// What the hash of a session says, but its chunks: manifest, number, expires, until, attested,
/// registered.
type Fields =
    (Option<Vec<u8>>, Option<u64>, Option<u64>, Option<u64>, Option<Vec<u8>>, Option<u64>);

fn record((manifest, number, expires, until, attested, registered): Fields) -> Option<Record> {
    Some(Record {
        manifest: Manifest::decode(&manifest?, u64::MAX).ok()?,
        open_number: number?,
        expires_at: UnixMillis(expires?),
        opens_until: UnixMillis(until?),
        attested: attested.and_then(|bytes| bytes.try_into().ok()).map(Digest),
        registered: registered == Some(1),
    })
}

impl Store for RedisStore {
    fn open<'a>(
        &'a self,
        key: &'a SessionKey,
        record: &'a Record,
        budget: Budget,
        now: UnixMillis,
    ) -> Answer<'a, Opened> {
        Box::pin(async move {
            let tenant = &key.identity.tenant;
            let manifest = record.manifest.encode();
            let manifest = manifest.map_err(|error| StoreError::Unusable(error.to_string()))?;
            let attested = record.attested.map_or(Vec::new(), |digest| digest.0.to_vec());
            let mut call = self.scripts.open.prepare_invoke();
            call.key(session_key(key))
                .key(tenant_key(tenant, "open"))
                .key(tenant_key(tenant, "ended"))
                .arg(key.to_string())
                .arg(now.0)
                .arg(format!("{:020}", record.open_number))
                .arg(&record.fingerprint().0[..])
                .arg(record.expires_at.0)
                .arg(record.opens_until.0)
                .arg(manifest)
                .arg(attested)
                .arg(record.manifest.key_len)
                .arg(budget.sessions)
                .arg(budget.bytes)
                .arg(budget.tombstones());
            let mut connection = self.connection.clone();
            let (outcome, detail): (String, String) =
                self.ask(call.invoke_async(&mut connection)).await?;
            Ok(match outcome.as_str() {
                "new" => Opened::New,
                "continued" => match self.find(key, now).await? {
                    Found::Session(stored) => Opened::Continued(stored),
                    Found::Nothing | Found::Ended => Opened::Ended,
                },
                "ended" => Opened::Ended,
                "replayed" => Opened::Replayed { newest: detail.parse().unwrap_or(u64::MAX) },
                "sessions" => Opened::Exceeded(Exceeded::Sessions(budget.sessions)),
                "bytes" => Opened::Exceeded(Exceeded::Bytes(budget.bytes)),
                "tombstones" => Opened::Exceeded(Exceeded::Tombstones(budget.tombstones())),
                other => return Err(StoreError::Unusable(format!("the script says \"{other}\""))),
            })
        })
    }

    fn find<'a>(&'a self, key: &'a SessionKey, now: UnixMillis) -> Answer<'a, Found> {
        Box::pin(async move {
            let session = session_key(key);
            let mut pipeline = Pipeline::new();
            pipeline
                .atomic()
                .cmd("HMGET")
                .arg(&session)
                .arg(&["manifest", "number", "expires", "until", "attested", "registered"])
                .cmd("HKEYS")
                .arg(&session)
                .cmd("ZSCORE")
                .arg(tenant_key(&key.identity.tenant, "ended"))
                .arg(key.to_string());
            let (fields, names, until): (Fields, Vec<Vec<u8>>, Option<String>) =
                self.query(&pipeline).await?;
            let is_there = fields.0.is_some();
            let until = until.and_then(|until| until.parse().ok()).map(UnixMillis);
            let ended =
                if until.is_some_and(|until| until > now) { Found::Ended } else { Found::Nothing };
            let Some(record) = record(fields) else {
                if is_there {
                    tracing::warn!(session = %key, "foreign session removed from the key store");
                    self.end(key, now).await?;
                }
                return Ok(ended);
            };
            if record.expires_at <= now {
                return Ok(ended);
            }
            let indices = names.iter().filter_map(|name| {
                std::str::from_utf8(name.strip_prefix(b"c")?).ok()?.parse::<usize>().ok()
            });
            let held = Held::these(record.manifest.chunk_digests.len(), indices);
            Ok(Found::Session(Stored { record, held }))
        })
    }

    fn put_chunk<'a>(
        &'a self,
        key: &'a SessionKey,
        index: usize,
        bytes: &'a [u8],
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let mut call = self.scripts.put.prepare_invoke();
            call.key(session_key(key)).arg(chunk_field(index)).arg(bytes);
            let mut connection = self.connection.clone();
            self.ask(call.invoke_async(&mut connection)).await
        })
    }

    fn load<'a>(
        &'a self,
        key: &'a SessionKey,
        manifest: &'a Manifest,
    ) -> Answer<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            let session = session_key(key);
            let len = usize::try_from(manifest.key_len).unwrap_or(usize::MAX);
            let chunk_len = usize::try_from(manifest.chunk_len).unwrap_or(usize::MAX);
            let indices: Vec<usize> = (0..manifest.chunk_digests.len()).collect();
            let mut bytes = Vec::with_capacity(len);
            for batch in indices.chunks(BATCH) {
                let fields: Vec<String> = batch.iter().map(|index| chunk_field(*index)).collect();
                let mut pipeline = Pipeline::new();
                pipeline.cmd("EXISTS").arg(&session).cmd("HMGET").arg(&session).arg(fields);
                let (is_there, chunks): (bool, Vec<Option<Vec<u8>>>) =
                    self.query(&pipeline).await?;
                if !is_there {
                    return Ok(None);
                }
                for chunk in chunks {
                    let end = len.min(bytes.len() + chunk_len);
                    bytes.extend_from_slice(&chunk.unwrap_or_default());
                    bytes.resize(end, 0);
                }
            }
            Ok(Some(bytes))
        })
    }

    fn register<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, bool> {
        Box::pin(async move {
            let mut call = self.scripts.put.prepare_invoke();
            call.key(session_key(key)).arg("registered").arg(1);
            let mut connection = self.connection.clone();
            self.ask(call.invoke_async(&mut connection)).await
        })
    }

    fn discard_chunks<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut call = self.scripts.discard.prepare_invoke();
            call.key(session_key(key));
            let mut connection = self.connection.clone();
            let _: i64 = self.ask(call.invoke_async(&mut connection)).await?;
            Ok(())
        })
    }

    fn end<'a>(&'a self, key: &'a SessionKey, _now: UnixMillis) -> Answer<'a, bool> {
        Box::pin(async move {
            let mut call = self.scripts.end.prepare_invoke();
            call.key(session_key(key))
                .key(tenant_key(&key.identity.tenant, "open"))
                .arg(key.to_string());
            let mut connection = self.connection.clone();
            self.ask(call.invoke_async(&mut connection)).await
        })
    }

    fn alive<'a>(&'a self, keys: &'a [SessionKey], now: UnixMillis) -> Answer<'a, Vec<bool>> {
        Box::pin(async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let mut pipeline = Pipeline::new();
            for key in keys {
                pipeline.cmd("HGET").arg(session_key(key)).arg("expires");
            }
            let expires: Vec<Option<u64>> = self.query(&pipeline).await?;
            Ok(expires.into_iter().map(|expires| expires.is_some_and(|at| at > now.0)).collect())
        })
    }

    fn usage<'a>(&'a self, tenant: &'a Tenant, now: UnixMillis) -> Answer<'a, Usage> {
        Box::pin(async move {
            let later = format!("({}", now.0);
            let mut pipeline = Pipeline::new();
            pipeline
                .atomic()
                .cmd("ZRANGEBYSCORE")
                .arg(tenant_key(tenant, "open"))
                .arg(&later)
                .arg("+inf")
                .cmd("ZCOUNT")
                .arg(tenant_key(tenant, "ended"))
                .arg(&later)
                .arg("+inf");
            let (open, names): (Vec<String>, u64) = self.query(&pipeline).await?;
            let lens =
                open.iter().filter_map(|member| member.rsplit_once(':')?.1.parse::<u64>().ok());
            let sessions = open.len() as u64;
            let bytes = lens.fold(0, u64::saturating_add);
            Ok(Usage { sessions, bytes, tombstones: names.saturating_sub(sessions) })
        })
    }

    fn sweep(&self, now: UnixMillis) -> Answer<'_, Vec<SessionKey>> {
        Box::pin(async move {
            let mut over = Vec::new();
            for tenant in &self.tenants {
                let (open, ended) = (tenant_key(tenant, "open"), tenant_key(tenant, "ended"));
                let mut pipeline = Pipeline::new();
                pipeline
                    .atomic()
                    .cmd("ZRANGEBYSCORE")
                    .arg(&open)
                    .arg("-inf")
                    .arg(now.0)
                    .cmd("ZREMRANGEBYSCORE")
                    .arg(&open)
                    .arg("-inf")
                    .arg(now.0)
                    .ignore()
                    .cmd("ZREMRANGEBYSCORE")
                    .arg(&ended)
                    .arg("-inf")
                    .arg(now.0)
                    .ignore();
                let (members,): (Vec<String>,) = self.query(&pipeline).await?;
                let names =
                    members.iter().filter_map(|member| member.rsplit_once(':')?.0.parse().ok());
                over.extend(names);
            }
            if over.is_empty() {
                return Ok(over);
            }
            // Redis removes them itself, within a moment that its clock and ours may differ by.
            let mut pipeline = Pipeline::new();
            for key in &over {
                pipeline.cmd("DEL").arg(session_key(key)).ignore();
            }
            self.query::<()>(&pipeline).await?;
            Ok(over)
        })
    }
}
