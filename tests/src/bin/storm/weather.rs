//! Kills of the daemons, and what everybody else must know of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_tests::counter::Counter;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

use crate::random::Random;
use crate::tally::Tally;

/// Between two kills.
const CALM: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(20));

/// How long what was killed stays away.
const AWAY: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(2500));

/// The longest until everything is in service again.
const PATIENCE: Duration = Duration::from_secs(90);

/// Odd while something is dead, even while all is well; grows with every change.
#[derive(Default)]
pub struct Weather(AtomicU64);

/// Taken before an operation.
#[derive(Clone, Copy)]
pub struct Outlook(u64);

impl Weather {
    pub fn look(&self) -> Outlook {
        Outlook(self.0.load(Ordering::SeqCst))
    }

    /// Whether an operation that was begun at this outlook may have failed because of a kill.
    pub fn disturbed_since(&self, before: Outlook) -> bool {
        before.0 % 2 == 1 || self.look().0 != before.0
    }

    fn change(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A capsule that nobody touches: it must go on in the same VMM whatever is killed.
struct Anchor {
    id: String,
    vmm: Option<u32>,
    counter: Counter,
}

/// Kills agent and api, again and again, and waits each time until all is in service again.
pub async fn rage(
    stack: &Stack,
    weather: &Weather,
    tally: &Tally,
    mut random: Random,
    until: Instant,
) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let mut anchor = Anchor { vmm: stack.vmm_of(&id), counter: Counter::start(client, &id).await?, id };
    loop {
        let pause = random.between(CALM.0, CALM.1);
        if Instant::now() + pause >= until {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        let (agent, api) = random.pick(&[(6, (true, false)), (3, (false, true)), (1, (true, true))]);
        let away = random.between(AWAY.0, AWAY.1);
        weather.change();
        strike(stack, tally, agent, api, away).await?;
        anchor.holds(stack).await?;
        weather.change();
    }
}

async fn strike(stack: &Stack, tally: &Tally, agent: bool, api: bool, away: Duration) -> Result<()> {
    if agent {
        stack.host().kill9().await?;
        tally.killed("agent");
    }
    if api {
        stack.kill9_api().await?;
        tally.killed("api");
    }
    tokio::time::sleep(away).await;
    if api {
        stack.start_api().await?;
    }
    if agent {
        stack.host().start(None).await?;
    }
    stack.host_online(stack.host().id()).await
}

impl Anchor {
    async fn holds(&mut self, stack: &Stack) -> Result<()> {
        let client = stack.client();
        wait::until_true("the host in service again", PATIENCE, async || {
            Ok(client.sh(&self.id, "echo here").await? == "here")
        })
        .await?;
        ensure!(stack.vmm_of(&self.id) == self.vmm, "the VMM of an untouched capsule was replaced");
        self.counter.goes_on(client, &self.id).await.context("an untouched capsule")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_disturbed_by_any_change() {
        let weather = Weather::default();
        let calm = weather.look();
        assert!(!weather.disturbed_since(calm));
        weather.change();
        let storm = weather.look();
        assert!(weather.disturbed_since(calm) && weather.disturbed_since(storm));
        weather.change();
        assert!(weather.disturbed_since(calm) && weather.disturbed_since(storm));
        assert!(!weather.disturbed_since(weather.look()));
    }
}
