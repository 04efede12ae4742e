//! A program in a capsule that counts, in its memory and on its disk. What it has once said it never unsays: a number
//! that goes back, or is not there, is memory or disk of another moment.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::graphql::{Client, Exec};
use crate::wait;

/// Both numbers are replaced by renaming, so that they are never seen half written. `/run` is memory, `/root` is disk.
const COUNTING: &str = "i=0; while :; do i=$((i+1)); \
    echo $i > /run/counter.new; mv /run/counter.new /run/counter; \
    echo $i > /root/counter.new; mv /root/counter.new /root/counter; sleep 0.1; done";

const READING: &str = "cat /run/counter /root/counter";

/// The longest a counter may stand still in a running capsule.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a counter has said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    pub memory: u64,
    pub disk: u64,
}

impl Counter {
    /// Starts one in a running capsule and waits for its first numbers.
    pub async fn start(client: &Client, id: &str) -> Result<Self> {
        client.start(Exec::shell(id, COUNTING)).await?;
        wait::until(format!("{id} counting"), PATIENCE, async || Ok(read(client, id).await.ok())).await
    }

    /// Looks at it now: neither number may have gone back.
    pub async fn check(&mut self, client: &Client, id: &str) -> Result<()> {
        let now = read(client, id).await?;
        self.advance_to(now).with_context(|| id.to_owned())
    }

    /// Waits until it has counted on.
    pub async fn goes_on(&mut self, client: &Client, id: &str) -> Result<()> {
        let before = *self;
        wait::until_true(format!("{id} counting on"), PATIENCE, async || {
            let now = read(client, id).await?;
            Ok(now.memory > before.memory && now.disk > before.disk)
        })
        .await?;
        self.check(client, id).await
    }

    fn advance_to(&mut self, now: Self) -> Result<()> {
        ensure!(now.memory >= self.memory && now.disk >= self.disk, "counted back from {self:?} to {now:?}");
        *self = now;
        Ok(())
    }
}

async fn read(client: &Client, id: &str) -> Result<Counter> {
    let said = client.sh(id, READING).await?;
    let mut numbers = said.lines().map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(memory)), Some(Ok(disk)), None) => Ok(Counter { memory, disk }),
        _ => anyhow::bail!("no counter in {id}: {said:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_never_goes_back() {
        let mut counter = Counter { memory: 7, disk: 6 };
        counter.advance_to(Counter { memory: 7, disk: 7 }).expect("on");
        assert!(counter.advance_to(Counter { memory: 9, disk: 6 }).is_err(), "an older disk");
        assert!(counter.advance_to(Counter { memory: 6, disk: 9 }).is_err(), "older memory");
        assert_eq!(counter, Counter { memory: 7, disk: 7 });
    }
}
