//! Hearing the other replicas.

use std::sync::Arc;

use futures_util::StreamExt;
use redis::{Msg, RedisError, aio::PubSubStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    super::hub::Hub,
    Ends, Pace,
    peers::Peers,
    wire::{Message, Word},
};

/// Why nothing is heard any more.
#[derive(Debug, thiserror::Error)]
enum Deaf {
    #[error("Redis cannot be subscribed to")]
    Refused(#[source] RedisError),
    #[error("Redis does not answer")]
    Timeout,
    #[error("the connection to Redis ended")]
    Ended,
    #[error("not even this replica's own words come back")]
    Silent,
}

/// Passes what the others tell on to the hub. Whenever something may have been missed, everybody looks at the database
/// again; and again and again for as long as nothing can be heard.
pub(super) struct Listener {
    pub(super) ends: Arc<Ends>,
    pub(super) pace: Pace,
    pub(super) me: Uuid,
    pub(super) hub: Arc<Hub>,
    pub(super) peers: Peers,
    pub(super) refreshed: Instant,
    /// Said once, not with every try.
    pub(super) complained: bool,
}

impl Listener {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let listening = async {
            loop {
                let deaf = match self.tune_in().await {
                    Ok(words) => self.listen(words).await,
                    Err(deaf) => deaf,
                };
                metrics::gauge!("wrenn_bus_connected").set(0.0);
                let cause = std::error::Error::source(&deaf).map(ToString::to_string);
                if std::mem::replace(&mut self.complained, true) {
                    tracing::debug!(error = %deaf, cause, "other replicas are still not heard");
                } else {
                    tracing::warn!(error = %deaf, cause, "other replicas are not heard");
                }
                self.refresh_if_due(self.pace.refresh);
                sleep(self.pace.retry).await;
            }
        };
        stop.run_until_cancelled(listening).await;
    }

    async fn tune_in(&self) -> Result<PubSubStream, Deaf> {
        let subscribing = async {
            let (mut sink, words) = self.ends.client.get_async_pubsub().await?.split();
            sink.subscribe(&self.ends.channel).await?;
            Ok(words)
        };
        timeout(self.pace.patience, subscribing).await.map_err(|_| Deaf::Timeout)?.map_err(Deaf::Refused)
    }

    async fn listen(&mut self, mut words: PubSubStream) -> Deaf {
        tracing::info!("other replicas are heard");
        self.complained = false;
        metrics::gauge!("wrenn_bus_connected").set(1.0);
        // What was told before is not told again.
        self.refresh();
        let mut heard_myself = Instant::now();
        self.peers.back(heard_myself);
        let mut look = interval(self.pace.look);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut missed = false;
        loop {
            tokio::select! {
                biased;
                now = look.tick() => {
                    if now - heard_myself > self.pace.silence {
                        return Deaf::Silent;
                    }
                    // Several misses in a row are one.
                    if std::mem::take(&mut missed) {
                        self.refresh();
                    }
                    if self.peers.any_silent(now) {
                        self.refresh_if_due(self.pace.refresh);
                    }
                }
                word = words.next() => match word {
                    Some(word) => match self.hear(&word) {
                        Heard::Myself => heard_myself = Instant::now(),
                        Heard::Whole => {}
                        Heard::Gap => missed = true,
                    },
                    None => return Deaf::Ended,
                },
            }
        }
    }

    fn hear(&mut self, word: &Msg) -> Heard {
        let now = Instant::now();
        let message: Message<'static> = match serde_json::from_slice(word.get_payload_bytes()) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "another replica said what this one does not understand");
                return Heard::Gap;
            }
        };
        if message.from == self.me {
            return Heard::Myself;
        }
        let tells = matches!(message.word, Word::Change(_));
        let whole = self.peers.heard(message.from, message.told, tells, now);
        match message.word {
            Word::Alive => {}
            Word::Leaving => self.peers.left(message.from),
            Word::Change(change) => self.hub.send(&change),
        }
        if whole { Heard::Whole } else { Heard::Gap }
    }

    fn refresh(&mut self) {
        metrics::counter!("wrenn_bus_refreshes_total").increment(1);
        self.refreshed = Instant::now();
        self.hub.refresh();
    }

    fn refresh_if_due(&mut self, every: std::time::Duration) {
        if self.refreshed.elapsed() >= every {
            self.refresh();
        }
    }
}

enum Heard {
    Myself,
    Whole,
    /// Something before it was not heard, or cannot be understood.
    Gap,
}
