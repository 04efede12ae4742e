//! Telling the other replicas.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use redis::{AsyncConnectionConfig, Pipeline, RedisError, aio::MultiplexedConnection};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    super::Change,
    Ends, Pace,
    wire::{Message, Word},
};

/// Changes that go to Redis in one round trip at most.
const BATCH: usize = 64;

/// Tells what comes through `changes` until the token is cancelled, then says farewell. What cannot be told is left
/// out: the numbers let the others notice.
pub(super) struct Talker {
    pub(super) ends: Arc<Ends>,
    pub(super) pace: Pace,
    pub(super) me: Uuid,
    pub(super) changes: mpsc::Receiver<Change>,
    /// Those that found no room in the queue.
    pub(super) dropped: Arc<AtomicU64>,
    pub(super) told: u64,
    /// Said once, not with every try.
    pub(super) complained: bool,
}

impl Talker {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut connection = None;
        let mut beat = interval(self.pace.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = self.changes.recv_many(&mut batch, BATCH) => if count == 0 { break },
                _ = beat.tick() => {}
            }
            // A round without changes is a heartbeat.
            self.send(&mut connection, &mut batch).await;
        }
        let _ = self.attempt(&mut connection, &[(self.told, Word::Leaving)]).await;
    }

    async fn send(&mut self, connection: &mut Option<MultiplexedConnection>, batch: &mut Vec<Change>) {
        let mut words = Vec::with_capacity(batch.len());
        self.told += self.dropped.swap(0, Ordering::Relaxed);
        for change in batch.drain(..) {
            self.told += 1;
            words.push((self.told, Word::Change(Cow::Owned(change))));
        }
        if words.is_empty() {
            words.push((self.told, Word::Alive));
        }
        let began = Instant::now();
        if let Err(error) = self.attempt(connection, &words).await {
            if std::mem::replace(&mut self.complained, true) {
                tracing::debug!(%error, words = words.len(), "other replicas can still not be told");
            } else {
                tracing::warn!(%error, words = words.len(), "other replicas can not be told of changes");
            }
            *connection = None;
            // Not as fast as changes come, if each try fails at once.
            sleep(self.pace.retry.saturating_sub(began.elapsed())).await;
        } else {
            self.complained = false;
        }
    }

    async fn attempt(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        words: &[(u64, Word<'_>)],
    ) -> Result<(), RedisError> {
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(self.connect().await?),
        };
        let mut pipeline = Pipeline::with_capacity(words.len());
        for (told, word) in words {
            let message = Message { from: self.me, told: *told, word: word.borrowed() };
            pipeline.cmd("PUBLISH").arg(&self.ends.channel).arg(message.to_json()).ignore();
        }
        pipeline.query_async(connection).await
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let patience = Some(self.pace.patience);
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
        self.ends.client.get_multiplexed_async_connection_with_config(&config).await
    }
}
