//! The output of programs that the process holds in answers, and the bound on all of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_graphql::Context;
use wrenn_entities::TeamId;

/// Bytes of each stream that an answer has; what comes after is read and dropped.
const KEPT: usize = 16 * 1024 * 1024;
/// The same where the answer is one frame of a socket, behind which all others wait.
const KEPT_OF_SOCKETS: usize = 1024 * 1024;

/// What all answers may hold together, and who holds it.
///
/// A team may hold as much as is free then, and no more: whoever comes first has half of it at most, and there is always
/// some left for a team that comes later (dynamic thresholds: A. K. Choudhury and E. L. Hahne, 1998).
#[derive(Debug)]
pub struct HeldOutputs(Mutex<Books>);

#[derive(Debug)]
struct Books {
    free: usize,
    teams: HashMap<TeamId, usize>,
}

/// What the answer to one request holds. Whoever sends the answer keeps this in the request's data until it is sent.
#[derive(Clone, Debug)]
pub struct HeldOutput {
    of_each_stream: usize,
    held: Arc<Mutex<Vec<Held>>>,
}

/// Bytes on the books for as long as it lives.
#[derive(Debug)]
struct Held {
    all: Arc<HeldOutputs>,
    team: TeamId,
    bytes: usize,
}

impl HeldOutputs {
    pub fn new(bytes: usize) -> Self {
        Self(Mutex::new(Books { free: bytes, teams: HashMap::new() }))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, team: TeamId, bytes: usize) -> bool {
        let mut books = self.books();
        let held = books.teams.get(&team).copied().unwrap_or(0) + bytes;
        let Some(free) = books.free.checked_sub(bytes).filter(|free| held <= *free) else { return false };
        books.free = free;
        books.teams.insert(team, held);
        true
    }

    fn give_back(&self, team: TeamId, bytes: usize) {
        let mut books = self.books();
        books.free += bytes;
        if let Some(held) = books.teams.get_mut(&team) {
            *held -= bytes;
            if *held == 0 {
                books.teams.remove(&team);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.give_back(self.team, self.bytes);
    }
}

impl Default for HeldOutput {
    fn default() -> Self {
        Self { of_each_stream: KEPT, held: Arc::default() }
    }
}

impl HeldOutput {
    /// For an answer that is sent over a socket.
    #[must_use]
    pub fn of_socket() -> Self {
        Self { of_each_stream: KEPT_OF_SOCKETS, ..Self::default() }
    }

    /// Of the request that is carried out; one that is sent nowhere holds until then.
    pub(super) fn of(ctx: &Context<'_>) -> Self {
        ctx.data_opt::<Self>().cloned().unwrap_or_default()
    }

    pub(super) fn of_each_stream(&self) -> usize {
        self.of_each_stream
    }

    /// Takes as many bytes more of what a team may hold, if it may.
    pub(super) fn take(&self, all: &Arc<HeldOutputs>, team: TeamId, bytes: usize) -> bool {
        if !all.take(team, bytes) {
            return false;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.last_mut() {
            Some(last) if last.team == team => last.bytes += bytes,
            _ => held.push(Held { all: all.clone(), team, bytes }),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use wrenn_entities::TypedId as _;

    use super::*;

    #[test]
    fn a_team_has_as_much_as_it_leaves_to_others() {
        let all = Arc::new(HeldOutputs::new(120));
        let [one, other, third] = [(); 3].map(|()| TeamId::generate());
        let (first, second) = (HeldOutput::default(), HeldOutput::default());
        assert!(first.take(&all, one, 40) && second.take(&all, one, 20));
        assert!(!second.take(&all, one, 1), "half of it");
        assert!(second.take(&all, other, 30) && !second.take(&all, other, 1));
        assert!(second.take(&all, third, 15), "nobody is shut out");
        drop(first);
        assert!(second.take(&all, other, 12), "what is free again is there for all");
        drop(second);
        let books = all.books();
        assert_eq!((books.free, books.teams.len()), (120, 0));
    }
}
