//! The life of a link: connection after connection.

use std::future::Future;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::connection::{self, End};
use super::inbox::Inbox;
use super::publications::answer;
use super::queue::{Next, Queue};
use super::{LinkConfig, LinkError, LinkEvent, PublishError};

pub(super) async fn run(
    config: LinkConfig,
    cancel: CancellationToken,
    mut queue: Queue,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut backoff = Backoff::new(config.reconnect);
    loop {
        let end = connection::run(&config, &cancel, &mut queue, &events).await;
        let (error, uptime, inbox) = match end {
            End::Stopped => return,
            End::Lost { error, uptime, inbox } => (error, uptime, inbox),
        };
        tracing::debug!(link = %config.name, %error, "link is down");
        let is_usable = !matches!(error, LinkError::Configuration(_));
        backoff.on_connection(uptime);
        let wait = backoff.next_wait(error.is_fatal(), random(&config.name));
        let between = async {
            tell(&events, inbox, error).await;
            if is_usable {
                tokio::time::sleep(wait).await;
            }
        };
        let goes_on = tokio::select! {
            () = cancel.cancelled() => false,
            () = events.closed() => false,
            () = refuse(&mut queue, between) => true,
        };
        if !goes_on || !is_usable {
            return;
        }
    }
}

/// Gives the consumer what had arrived, then the news.
async fn tell(events: &mpsc::Sender<LinkEvent>, mut inbox: Inbox, error: LinkError) {
    while let Some(arrived) = inbox.pop() {
        // A consumer that has gone ends the link elsewhere.
        let _ = events.send(LinkEvent::Message(arrived.message)).await;
    }
    let _ = events.send(LinkEvent::Down(error)).await;
}

/// Refuses publications until `until` is over.
async fn refuse(queue: &mut Queue, until: impl Future<Output = ()>) {
    tokio::pin!(until);
    let mut has_publishers = true;
    loop {
        tokio::select! {
            () = &mut until => return,
            next = queue.next(true), if has_publishers => match next {
                Some(Next::Prompt(command) | Next::Bulk(command)) => {
                    answer(command.reply, Err(PublishError::Down));
                }
                None => has_publishers = false,
            },
        }
    }
}

fn random(link: &str) -> u32 {
    getrandom::u32().unwrap_or_else(|error| {
        // Jitter is a courtesy to the broker; a link without it is better than none.
        tracing::warn!(link, %error, "no randomness from the operating system");
        u32::MAX / 2
    })
}
