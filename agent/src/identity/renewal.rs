//! Renewal: a new certificate long before the old one ends.
//!
//! Invariants:
//! - renewal begins at two thirds of a certificate's life, and what fails is tried again until
//!   there is a certificate that ends later;
//! - a certificate file that somebody else replaces is noticed within [`LOOK_INTERVAL`];
//! - what needs a person is in [`CertificateState`] for as long as it does.

use std::sync::Arc;
use std::time::Duration;

use moai_transport::tls::{CertificateFacts, utc};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::issuer::{Issuer, RenewalError};
use super::{CertificateStore, IdentityError, csr};
use crate::clock::Clock;

/// How often the certificate file and the clock are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_hours(1);

/// What the agent's health and status say of the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateState {
    /// Where its key is, see [`IdentityKey::place`](super::IdentityKey::place).
    pub key: &'static str,
    /// When the certificate in use ends, in seconds since 1970.
    pub not_after: Option<i64>,
    /// What a person has to do something about.
    pub warning: Option<String>,
}

impl CertificateState {
    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let key = match self.key {
            "tpm" => "key in the TPM",
            _ => "key in a FILE (development)",
        };
        let end = self.not_after.map_or_else(|| "none yet".to_owned(), utc);
        format!("{key}, certificate valid until {end}")
    }
}

/// Keeps the certificate of a [`CertificateStore`] alive.
pub struct Renewal<I> {
    store: Arc<CertificateStore>,
    issuer: I,
    clock: Arc<dyn Clock>,
    watch: watch::Sender<CertificateState>,
    /// Why the last try to renew failed.
    failure: Option<String>,
    /// Why the file that is there is not what is shown.
    refused: Option<String>,
    retry: Duration,
    next_try: Instant,
}

impl<I: Issuer> Renewal<I> {
    /// Nothing happens before [`run`](Self::run).
    #[must_use]
    pub fn new(
        store: Arc<CertificateStore>,
        issuer: I,
        clock: Arc<dyn Clock>,
    ) -> (Self, watch::Receiver<CertificateState>) {
        let key = store.key().place();
        let (watch, receiver) =
            watch::channel(CertificateState { key, not_after: None, warning: None });
        let renewal = Self {
            store,
            issuer,
            clock,
            watch,
            failure: None,
            refused: None,
            retry: FIRST_RETRY,
            next_try: Instant::now(),
        };
        renewal.tell();
        (renewal, receiver)
    }

    /// The robot's first certificate, if it has none and there is somebody to ask.
    ///
    /// # Errors
    /// There is none still.
    pub async fn first(&mut self) -> Result<(), RenewalError> {
        if self.store.facts().is_none() && self.issuer.exists() {
            self.renew().await?;
        }
        self.tell();
        Ok(self.store.require()?)
    }

    /// Looks after the certificate until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let look = async {
                self.look().await;
                tokio::time::sleep(LOOK_INTERVAL).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = look => {}
            }
        }
    }

    async fn look(&mut self) {
        match self.store.reload(self.now()) {
            Ok(None) => self.refused = None,
            Ok(Some(facts)) => {
                self.refused = None;
                self.renewed(
                    &facts,
                    "the certificate file was replaced, the new certificate is in use",
                );
            }
            Err(error) => {
                let problem = format!(
                    "the certificate file was replaced by one that cannot be used, the one before \
                     stays in use: {error}"
                );
                if self.refused.as_ref() != Some(&problem) {
                    tracing::warn!("{problem}");
                }
                self.refused = Some(problem);
            }
        }
        let may_try = self.issuer.exists() && Instant::now() >= self.next_try;
        if self.is_due()
            && may_try
            && let Err(error) = self.renew().await
        {
            tracing::warn!(%error, retry_seconds = self.retry.as_secs(), "certificate not renewed");
            self.failure = Some(error.to_string());
            self.next_try = Instant::now() + self.retry;
            self.retry = (self.retry * 2).min(LAST_RETRY);
        }
        self.tell();
    }

    async fn renew(&mut self) -> Result<(), RenewalError> {
        let request = csr::request(self.store.identity(), self.store.key())?;
        let pem = self.issuer.issue(request).await?;
        let present = self.store.facts().map(|facts| facts.not_after);
        let new = CertificateFacts::from_pem(&pem).map_err(|source| IdentityError::Credential {
            path: "the renewal command's answer".into(),
            source,
        })?;
        if present.is_some_and(|present| new.not_after <= present) {
            return Err(RenewalError::NotLater { not_after: new.not_after });
        }
        let facts = self.store.install(&pem, self.now())?;
        self.renewed(&facts, "certificate renewed");
        Ok(())
    }

    fn renewed(&mut self, facts: &CertificateFacts, how: &str) {
        tracing::info!(valid_until = utc(facts.not_after), "{how}");
        self.failure = None;
        self.retry = FIRST_RETRY;
        self.next_try = Instant::now();
    }

    fn now(&self) -> u64 {
        self.clock.unix().as_secs()
    }

    fn is_due(&self) -> bool {
        let now = i64::try_from(self.now()).unwrap_or(i64::MAX);
        self.store.facts().is_some_and(|facts| now >= due(&facts))
    }

    fn tell(&self) {
        let facts = self.store.facts();
        let expiring = facts.as_ref().filter(|_| self.is_due()).and_then(|facts| {
            let end = utc(facts.not_after);
            let now = i64::try_from(self.now()).unwrap_or(i64::MAX);
            let ends = if now >= facts.not_after { "expired" } else { "expires" };
            match &self.failure {
                Some(failure) => Some(format!("{ends} on {end}; renewal fails: {failure}")),
                None if self.issuer.exists() => None,
                None => Some(format!(
                    "{ends} on {end} and nothing renews it: set uplink.renew_command, or hand \
                     `moai-agent identity csr` to your authority"
                )),
            }
        });
        let warning = self.refused.clone().or(expiring);
        let key = self.store.key().place();
        let next = CertificateState { key, not_after: facts.map(|facts| facts.not_after), warning };
        self.watch.send_if_modified(|present| {
            let changed = *present != next;
            *present = next;
            changed
        });
    }
}

/// When renewal begins: at two thirds of the certificate's life, in seconds since 1970.
fn due(facts: &CertificateFacts) -> i64 {
    let life = facts.not_after.saturating_sub(facts.not_before);
    facts.not_before.saturating_add(life / 3 * 2)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::identity::support::{HOUR, NOW, Site, TokioClock};

    const H: i64 = HOUR.cast_signed();

    /// Answers each request with the next of its answers, the last one for ever.
    #[derive(Clone, Default)]
    struct Desk {
        answers: Arc<Mutex<Vec<Option<String>>>>,
        asked: Arc<Mutex<Vec<Instant>>>,
    }

    impl Desk {
        fn answering(answers: impl IntoIterator<Item = Option<String>>) -> Self {
            let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
            Self { answers, ..Self::default() }
        }

        /// Seconds from `start` to each request.
        fn asked(&self, start: Instant) -> Vec<u64> {
            self.asked.lock().unwrap().iter().map(|at| (*at - start).as_secs()).collect()
        }
    }

    impl Issuer for Desk {
        async fn issue(&self, request: String) -> Result<Vec<u8>, RenewalError> {
            assert!(request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{request}");
            self.asked.lock().unwrap().push(Instant::now());
            let mut answers = self.answers.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            answer.map(String::into_bytes).ok_or(RenewalError::TooLong { program: "desk".into() })
        }

        fn exists(&self) -> bool {
            !self.answers.lock().unwrap().is_empty()
        }
    }

    /// Renewal at work until it is dropped.
    struct Subject {
        state: watch::Receiver<CertificateState>,
        _stop: tokio_util::sync::DropGuard,
    }

    impl Subject {
        fn start(site: &Site, desk: &Desk) -> Self {
            let (renewal, state) = Renewal::new(site.store(), desk.clone(), TokioClock::start());
            let stop = CancellationToken::new();
            tokio::spawn(renewal.run(stop.clone()));
            Self { state, _stop: stop.drop_guard() }
        }

        async fn until(&mut self, is: impl FnMut(&CertificateState) -> bool) -> CertificateState {
            let waiting = tokio::time::timeout(Duration::from_hours(1000), self.state.wait_for(is));
            waiting.await.expect("it does not come").unwrap().clone()
        }
    }

    fn ends_at(hours: i64) -> impl Fn(&CertificateState) -> bool {
        let end = NOW.cast_signed() + hours * H;
        move |state| state.not_after == Some(end)
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_begins_at_two_thirds_of_the_certificates_life() {
        let (site, start) = (Site::new(), Instant::now());
        site.write(&site.certificate(-H, 2 * H));
        let desk = Desk::answering([Some(site.certificate(0, 9 * H))]);
        let mut subject = Subject::start(&site, &desk);
        let renewed = subject.until(ends_at(9)).await;
        assert_eq!((desk.asked(start), renewed.warning), (vec![HOUR], None));
        // The new one is not due before its own time.
        desk.answers.lock().unwrap()[0] = Some(site.certificate(6 * H, 12 * H));
        subject.until(ends_at(12)).await;
        assert_eq!(desk.asked(start), [HOUR, 6 * HOUR]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_told_and_tried_again_with_growing_pauses() {
        let (site, start) = (Site::new(), Instant::now());
        site.write(&site.certificate(-2 * H, H));
        let later = site.certificate(0, 9 * H);
        let [stale, foreign] = [site.certificate(0, H), Site::new().certificate(0, 9 * H)];
        let answers = [None, Some("no PEM".to_owned()), Some(stale), Some(foreign), Some(later)];
        let desk = Desk::answering(answers);
        let mut subject = Subject::start(&site, &desk);
        for words in
            ["the renewal command desk", "holds no certificate", "not later than", "identity key"]
        {
            let told = subject.until(|state| {
                state.warning.as_ref().is_some_and(|warning| warning.contains(words))
            });
            assert!(ends_at(1)(&told.await), "a bad answer was taken");
        }
        assert_eq!(subject.until(ends_at(9)).await.warning, None);
        assert_eq!(desk.asked(start), [0, 30, 90, 210, 450]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_nothing_renews_is_warned_about_from_then_on() {
        let (site, start) = (Site::new(), Instant::now());
        site.write(&site.certificate(-H, 2 * H));
        let mut subject = Subject::start(&site, &Desk::default());
        let state = subject.until(|state| state.warning.is_some()).await;
        assert_eq!(start.elapsed().as_secs(), HOUR);
        let warning = state.warning.unwrap();
        assert!(warning.contains("expires") && warning.contains("nothing renews it"), "{warning}");
        let expired = |state: &CertificateState| {
            state.warning.as_ref().is_some_and(|warning| warning.starts_with("expired on"))
        };
        subject.until(expired).await;
        assert_eq!(start.elapsed().as_secs(), 2 * HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_somebody_else_replaces_is_used_if_it_can_be() {
        let site = Site::new();
        site.write(&site.certificate(-H, 100 * H));
        let mut subject = Subject::start(&site, &Desk::default());
        subject.until(ends_at(100)).await;
        site.write(&site.certificate(-H, 200 * H));
        let state = subject.until(ends_at(200)).await;
        assert_eq!(state.warning, None);
        site.write(&Site::new().certificate(-H, 300 * H));
        let state = subject.until(|state| state.warning.is_some()).await;
        assert!(ends_at(200)(&state), "{state:?}");
        assert!(state.warning.unwrap().contains("cannot be used"));
        site.write(&site.certificate(-H, 300 * H));
        assert_eq!(subject.until(ends_at(300)).await.warning, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_robot_without_a_certificate_gets_its_first_one_or_says_how() {
        let site = Site::new();
        let clock = TokioClock::start();
        let (mut alone, _state) = Renewal::new(site.store(), Desk::default(), clock.clone());
        let error = alone.first().await.unwrap_err().to_string();
        assert!(error.contains("moai-agent identity csr"), "{error}");
        let desk = Desk::answering([Some(site.certificate(0, H))]);
        let (mut renewal, state) = Renewal::new(site.store(), desk, clock);
        renewal.first().await.unwrap();
        assert!(ends_at(1)(&state.borrow()));
    }
}
