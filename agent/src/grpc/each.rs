//! One question about many capsules, each answered for on its own.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio_stream::Stream;
use tonic::Status;
use wrenn_proto::MOST_CAPSULES;
use wrenn_proto::agent::v1::Failure;

use super::status::{failure, status};
use crate::capsule::CapsuleError;

/// Guests asked at a time for one call: what they answer is held until it is sent.
const AT_ONCE: usize = 32;
/// How long one may take, so that a guest that hangs does not take the others' answers with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of the question for a capsule: a failure, or else the answer.
pub struct Answer<T> {
    pub capsule_id: String,
    pub failure: Option<Failure>,
    pub answer: T,
}

/// Asks for one capsule after the other, several at a time, as fast as the answers are taken.
pub fn each<T, F>(
    capsules: Vec<String>,
    ask: impl Fn(String) -> F + Send + 'static,
) -> Result<impl Stream<Item = Answer<T>> + Send + 'static, Status>
where
    T: Default + Send + 'static,
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    if capsules.len() > MOST_CAPSULES {
        let message = format!("at most {MOST_CAPSULES} capsules a call, not {}", capsules.len());
        return Err(status(&CapsuleError::Invalid { field: "capsuleIds", message }));
    }
    let asked = stream::iter(capsules).map(move |capsule_id| {
        let answer = tokio::time::timeout(PATIENCE, ask(capsule_id.clone()));
        async move {
            let answer = answer.await.unwrap_or_else(|_| {
                let seconds = PATIENCE.as_secs();
                Err(Status::deadline_exceeded(format!("the guest did not answer within {seconds} s")))
            });
            match answer {
                Ok(answer) => Answer { capsule_id, failure: None, answer },
                Err(status) => Answer { capsule_id, failure: Some(failure(&status)), answer: T::default() },
            }
        }
    });
    Ok(asked.buffer_unordered(AT_ONCE))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tonic::Code;

    use super::*;

    fn capsules(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_hangs_fails_alone_and_no_more_are_asked_than_can_be_held() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let answers = each(capsules(100), move |capsule| {
            count.fetch_add(1, Ordering::Relaxed);
            async move { if capsule == "7" { std::future::pending().await } else { Ok(capsule) } }
        });
        let mut answers = std::pin::pin!(answers.unwrap());
        let first = answers.next().await.unwrap();
        assert_eq!(first.capsule_id, first.answer);
        assert_eq!(asked.load(Ordering::Relaxed), AT_ONCE);
        let mut rest: Vec<_> = answers.collect().await;
        let hung = rest.pop().unwrap();
        assert_eq!(hung.capsule_id, "7");
        assert_eq!(hung.failure.map(|failure| Code::from_i32(failure.code)), Some(Code::DeadlineExceeded));
        assert_eq!(rest.len(), 98);
        assert!(rest.iter().all(|answer| answer.failure.is_none() && answer.capsule_id == answer.answer));
    }

    #[tokio::test]
    async fn more_than_a_page_is_refused() {
        let ask = |_| std::future::ready(Ok(()));
        assert_eq!(each(capsules(MOST_CAPSULES), ask).unwrap().count().await, MOST_CAPSULES);
        let refused = each(capsules(MOST_CAPSULES + 1), ask).map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
