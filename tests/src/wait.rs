//! Waiting on conditions: every wait of the tests has a condition, a name and a deadline.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use tokio::time::timeout;

/// How long between two looks at a condition that nothing announces.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `probe` until it gives a value, for `deadline` at most. A probe that fails is asked again:
/// what it said last is part of the error when time is up. One that hangs ends with the deadline.
pub async fn until<T, F>(what: impl Display, deadline: Duration, mut probe: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Option<T>>,
{
    let begun = Instant::now();
    let mut last = None;
    loop {
        match timeout(deadline.saturating_sub(begun.elapsed()), probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(outcome) => last = outcome.err(),
            // An earlier one that failed says more.
            Err(_) => last = last.or_else(|| Some(anyhow!("a look that did not end"))),
        }
        if begun.elapsed() >= deadline {
            match last {
                Some(error) => bail!("{what}: not within {deadline:?}; last: {error:#}"),
                None => bail!("{what}: not within {deadline:?}"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The same for a condition that is only true or false.
pub async fn until_true<F>(what: impl Display, deadline: Duration, mut probe: F) -> Result<()>
where
    F: AsyncFnMut() -> Result<bool>,
{
    until(what, deadline, async || Ok(probe().await?.then_some(()))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn gives_the_value_once_it_is_there() {
        let mut looks = 0;
        let value = runtime().block_on(until("third look", Duration::from_secs(5), async || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        }));
        assert_eq!(value.expect("a value"), 3);
    }

    #[test]
    fn says_what_was_waited_for_and_why_it_failed_last() {
        let outcome: Result<()> =
            runtime().block_on(until("the moon", Duration::ZERO, async || bail!("still behind clouds")));
        let message = outcome.expect_err("no value").to_string();
        assert!(message.contains("the moon") && message.contains("still behind clouds"), "{message}");
    }

    #[test]
    fn a_look_that_hangs_ends_with_the_deadline() {
        let outcome: Result<()> =
            runtime().block_on(until("the moon", Duration::from_millis(50), std::future::pending));
        let message = outcome.expect_err("no value").to_string();
        assert!(message.contains("the moon") && message.contains("did not end"), "{message}");
    }
}
