//! The opening of a task, by onboard software or by the configuration.
//!
//! Invariant: what the configuration says stands above what onboard software asks for.

use std::sync::Arc;

use moai_fhe::ModelCard;
use moai_transport::ids::ModelId;

use super::Task;
use super::work::{Work, release};
use crate::config::DeclaredTask;
use crate::onboard::{Code, OpenRequest, Refusal, ReplyTo};
use crate::session::Purpose;
use crate::session::lifecycle::DrainReason;
use crate::uplink::Catalogue;

impl Task {
    pub(super) async fn open(&mut self, request: OpenRequest, reply: Option<ReplyTo>) {
        let declared = self.declared.as_ref().filter(|it| {
            (&it.model, it.ttl, it.scores) != (&request.model, request.ttl, request.scores)
        });
        if let Some(declared) = declared {
            let message = format!(
                "the configuration opens this task with model {} and another request changes nothing",
                declared.model
            );
            return self.refuse(Refusal::new(Code::Declared, message), reply).await;
        }
        if let Some(work) = &self.work {
            if work.is_for(&request) {
                // Onboard software that restarted opens again: it is the same task.
                self.asked.when_active(reply);
                return self.show_current().await;
            }
            let model = work.purpose.card.id();
            let message = format!("the task is open with model {model}; close it first");
            return self.refuse(Refusal::new(Code::AlreadyOpen, message), reply).await;
        }
        self.asked.when_active(reply);
        self.model = request.model.to_string();
        self.opening = Some(request);
        self.try_open().await;
    }

    /// The configuration says something else than before.
    pub(super) async fn redeclared(&mut self) {
        let declared = self.declaration.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.declared, declared);
        let Some(declared) = &self.declared else {
            self.suffers_from(None);
            return self.close(None).await;
        };
        let request = request_of(declared);
        if !before.is_some_and(|before| before.reads_like(declared))
            && let Some(work) = &mut self.work
        {
            // Samples of other topics continue no window.
            work.window.restart();
        }
        self.open_declared(request).await;
    }

    /// What the configuration says stands above what an earlier configuration said.
    pub(super) async fn open_declared(&mut self, request: OpenRequest) {
        let given = self.declared.as_ref().and_then(DeclaredTask::channels);
        let fits = |work: &Work| given.is_none_or(|given| given == work.channels.get());
        if self.work.as_ref().is_some_and(|work| work.is_for(&request) && fits(work)) {
            return;
        }
        self.retire_all(DrainReason::Rotated).await;
        self.refuse_pending().await;
        self.model = request.model.to_string();
        self.opening = Some(request);
        self.try_open().await;
    }

    /// Opens the task if the server's catalogue is there and has its model.
    pub(super) async fn try_open(&mut self) {
        let Some(request) = self.opening.clone() else { return };
        let Some(known) = self.catalogue.borrow_and_update().clone() else {
            let why = "waiting for the server's catalogue".to_owned();
            return self.show("opening", None, Some(why)).await;
        };
        let found = match known.get(&request.model) {
            Some(card) => self.work_with(card, &request),
            None => Err(unknown_model(&known, &request.model)),
        };
        let refusal = match found {
            Ok(work) => {
                self.opening = None;
                self.work = Some(work);
                self.suffers_from(None);
                return self.provide().await;
            }
            Err(refusal) => refusal,
        };
        let why = refusal.message.clone();
        if self.declared.is_some() {
            // Another catalogue may have it.
            self.refuse(refusal, None).await;
            self.suffers_from(Some(why.clone()));
            self.show("opening", None, Some(why)).await;
        } else {
            self.opening = None;
            let replies = self.asked.answered_by("ended");
            self.refuse(refusal, replies).await;
            self.show("ended", None, Some(why)).await;
        }
    }

    fn work_with(&self, card: &Arc<ModelCard>, request: &OpenRequest) -> Result<Work, Refusal> {
        let names = &card.window().channels;
        let given = self.declared.as_ref().and_then(DeclaredTask::channels);
        let work = Work::new(Purpose {
            task: self.id.clone(),
            card: Arc::clone(card),
            ttl: request.ttl,
            release: release(request),
        });
        work.filter(|work| given.is_none_or(|given| given == work.channels.get())).ok_or_else(|| {
            let message = format!(
                "model {} takes {} channels ({}), the task's topics give {}; correct [[tasks]] {}",
                card.id(),
                names.len(),
                names.join(", "),
                given.unwrap_or_default(),
                self.id
            );
            Refusal::new(Code::WrongChannels, message)
        })
    }
}

/// What the configuration asks for.
pub(super) fn request_of(declared: &DeclaredTask) -> OpenRequest {
    let DeclaredTask { model, ttl, scores, .. } = declared;
    OpenRequest { model: model.clone(), ttl: *ttl, scores: *scores }
}

fn unknown_model(known: &Catalogue, model: &ModelId) -> Refusal {
    if let Some(missing) = known.out_of_reach(model) {
        let message = format!("model {model} is out of reach: {missing}");
        return Refusal::new(Code::UnknownScheme, message);
    }
    let offered: Vec<String> = known.ids().map(ToString::to_string).collect();
    let message = format!("the server offers no model {model}; it offers: {}", offered.join(", "));
    Refusal::new(Code::UnknownModel, message)
}
