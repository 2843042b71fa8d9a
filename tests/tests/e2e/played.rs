//! A robot that a test plays, with keys of its own, through a client that the broker lets write
//! where it likes: so it may also say what no robot says.

use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_fhe::Context as FheContext;
use moai_tests::bench::subject;
use moai_tests::mqtt::Client;
use moai_tests::onboard::SLOW;
use moai_tests::pki::{Pki, Signer, unix_now};
use moai_transport::chunk::{ChunkSender, manifest};
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, Digest, Identity, SessionId, WorkerId};
use moai_transport::keys::SessionSigningKey;
use moai_transport::message::{ErrorBody, ErrorCode, Have};
use moai_transport::topic::Topic;

use crate::stage::{QUICK, Stage, new_session};

/// A robot, in one session.
pub(crate) struct Played<'s> {
    pub(crate) operator: &'s Client,
    pub(crate) pki: &'s Pki,
    /// What it asks for, in the session's context.
    pub(crate) model: &'static str,
    pub(crate) context: ContextId,
    pub(crate) identity: Identity,
    pub(crate) session: SessionId,
    pub(crate) signer: Signer,
    pub(crate) key: SessionSigningKey,
    pub(crate) worker: WorkerId,
}

pub(crate) fn context() -> ContextId {
    ContextId(Digest(FheContext::tfhe().digest()))
}

impl<'s> Played<'s> {
    /// A robot with the name of the stage's own, in a session of which nobody knows yet. From now
    /// on the operator sees what goes down to robots.
    pub(crate) async fn new(stage: &'s Stage) -> Result<Self> {
        Self::at(&stage.operator, &stage.pki, stage.compute.worker()?).await
    }

    /// The same where there is no more than a broker and a worker.
    pub(crate) async fn at(operator: &'s Client, pki: &'s Pki, worker: &str) -> Result<Self> {
        operator.subscribe("moai/v1/down/#").await?;
        Ok(Self {
            operator,
            pki,
            model: QUICK,
            context: context(),
            identity: "acme.robot-1".parse()?,
            session: new_session(),
            signer: pki.client("acme.robot-1")?.signer()?,
            key: SessionSigningKey::from_seed(&[7; 32]),
            worker: worker.parse()?,
        })
    }

    pub(crate) fn open(&self) -> Topic {
        Topic::Open { identity: self.identity.clone(), session: self.session.clone() }
    }

    pub(crate) fn job(&self) -> Topic {
        let (identity, worker) = (self.identity.clone(), self.worker.clone());
        Topic::Job { identity, worker, session: self.session.clone() }
    }

    pub(crate) fn delete(&self) -> Topic {
        let (identity, worker) = (self.identity.clone(), self.worker.clone());
        Topic::Delete { identity, worker, session: self.session.clone() }
    }

    pub(crate) fn claims(&self, number: u64) -> Result<Claims> {
        Ok(Claims {
            identity: Some(self.identity.clone()),
            session: Some(self.session.clone()),
            number,
            model: Some(self.model.parse()?),
            context: Some(self.context),
            expires_at: unix_now()? + 60,
            ..Claims::default()
        })
    }

    pub(crate) fn job_frame(&self, number: u64, input: &[u8]) -> Result<Frame> {
        Ok(Frame { kind: FrameKind::Job, claims: self.claims(number)?, body: input.to_vec() })
    }

    pub(crate) fn job_bytes(&self, number: u64, input: &[u8]) -> Result<Vec<u8>> {
        Ok(self.job_frame(number, input)?.encode_as_session(&self.key)?)
    }

    pub(crate) fn delete_bytes(&self) -> Result<Vec<u8>> {
        let claims = Claims { model: None, ..self.claims(0)? };
        let frame = Frame { kind: FrameKind::Delete, claims, body: Vec::new() };
        Ok(frame.encode_as_session(&self.key)?)
    }

    /// An open of keys that nobody has.
    pub(crate) fn open_frame(&self, number: u64, ttl: Duration) -> Result<Frame> {
        let keys = b"short-lived keys";
        let body = manifest(self.context, ttl, self.key.public(), keys, number)?.encode()?;
        Ok(Frame { kind: FrameKind::Open, claims: self.claims(number)?, body })
    }

    pub(crate) fn open_bytes(&self, number: u64, ttl: Duration) -> Result<Vec<u8>> {
        Ok(self.open_frame(number, ttl)?.encode_as_robot(&self.signer)?)
    }

    pub(crate) async fn publish(&self, topic: &Topic, payload: Vec<u8>) -> Result<()> {
        self.operator.publish(&topic.to_string(), payload).await
    }

    /// Sends bytes and returns with what the server refuses them: code and job.
    pub(crate) async fn refused(
        &self,
        topic: &Topic,
        payload: Vec<u8>,
    ) -> Result<(ErrorCode, u64)> {
        let session = topic.session().context("a robot's topic")?;
        self.publish(topic, payload).await?;
        let frame = self.answer(session, "error").await?;
        Ok((ErrorBody::decode(&frame.body)?.code, frame.claims.number))
    }

    /// The next thing a worker says it holds of the session.
    pub(crate) async fn have(&self) -> Result<Have> {
        Ok(Have::decode(&self.answer(&self.session, "have").await?.body)?)
    }

    /// The next answer to one of the session's jobs.
    pub(crate) async fn result(&self) -> Result<Frame> {
        self.answer(&self.session, "result").await
    }

    /// The next frame of a server that goes down to a session.
    async fn answer(&self, session: &SessionId, leaf: &str) -> Result<Frame> {
        let filter = format!("moai/v1/down/{}/{session}/{leaf}", self.identity);
        let message = self.operator.wait_for(&filter, leaf, SLOW, |_| true).await?;
        self.pki.answered(&message.payload)
    }

    /// Opens the session as a robot does and has real keys registered. Returns the open.
    pub(crate) async fn register(&self) -> Result<Vec<u8>> {
        self.register_keys(subject::engine()?.evaluation_keys()?).await
    }

    /// The same with these keys.
    pub(crate) async fn register_keys(&self, keys: Vec<u8>) -> Result<Vec<u8>> {
        let ttl = Duration::from_mins(10);
        let manifest = manifest(self.context, ttl, self.key.public(), &keys, 1)?;
        let mut sender = ChunkSender::new(keys.into(), manifest)?;
        let body = sender.reopen(2).encode()?;
        let open = Frame { kind: FrameKind::Open, claims: self.claims(1)?, body };
        let open = open.encode_as_robot(&self.signer)?;
        self.publish(&self.open(), open.clone()).await?;
        sender.on_have(&self.have().await?);
        let topic = Topic::Chunk {
            identity: self.identity.clone(),
            worker: self.worker.clone(),
            session: self.session.clone(),
        };
        while let Some(part) = sender.next_chunk() {
            let claims = Claims { model: None, ..self.claims(part.index)? };
            let chunk = Frame { kind: FrameKind::Chunk, claims, body: part.bytes.to_vec() };
            self.publish(&topic, chunk.encode()?).await?;
            sender.on_acked(part.index);
        }
        let have = self.have().await?;
        anyhow::ensure!(have.registered, "the keys are not registered");
        Ok(open)
    }
}
