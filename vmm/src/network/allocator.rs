//! Who has which slot, and slots made ahead of need.
//!
//! ```text
//!          acquire (from the pool, or made now)
//!   idle ─────────────────────────────────────▶ handed out
//!    ▲ ╲                                          │
//!    │  ╲──▶ pooled (made ahead) ◀── release ─────┤ (cleaned, if the pool has room)
//!    └───────────────── release ──────────────────┘ (removed otherwise)
//! ```
//! A slot whose removal failed is in none of these until the next start sweeps it.

use std::{
    collections::{BTreeSet, VecDeque},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, task::JoinHandle};

use super::{
    NetworkError, NetworkSlot, SlotNumber, SlotRange, namespace, presence::Presence, rules, watch::Watch,
};
use crate::failpoint;
use crate::failure::{Failures, Teardown, blocking};

#[derive(Clone, Debug)]
pub struct NetworkOptions {
    pub slots: SlotRange,
    /// Slots made ahead of need.
    pub pool: usize,
    /// Guests may ask these for names, wherever they are.
    pub name_servers: Vec<Ipv4Addr>,
}

/// Hands out slots. What it knows is lost with the process: the truth is what the capsules' records
/// claim at [`start`](Self::start).
pub struct SlotAllocator {
    shared: Arc<Shared>,
    presence: Presence,
    watch: Watch,
    refill: JoinHandle<()>,
}

struct Shared {
    slots: SlotRange,
    pool: usize,
    name_servers: Arc<[Ipv4Addr]>,
    state: Mutex<State>,
    /// The pool may have room.
    wanted: Notify,
    /// What was being made ahead is in the pool, or will not be.
    settled: Notify,
}

struct State {
    /// Numbers without a network; taken from the front and given back at the end, so that the flows of
    /// an earlier guest have time to be forgotten everywhere.
    idle: VecDeque<SlotNumber>,
    pooled: Vec<NetworkSlot>,
    /// Claimed, and not yet asked for.
    claimed: BTreeSet<SlotNumber>,
    handed_out: BTreeSet<SlotNumber>,
    /// One of those that are handed out is being made for the pool.
    making_ahead: bool,
    /// Nothing is made ahead or kept for reuse any more.
    closing: bool,
}

/// What [`State::take`] found.
enum Taken {
    Ready(NetworkSlot),
    /// It has to be made.
    Number(SlotNumber),
    /// The last one is being made for the pool.
    Awaited,
    Nothing,
}

impl State {
    fn take(&mut self) -> Taken {
        if let Some(slot) = self.pooled.pop() {
            self.handed_out.insert(slot.number());
            return Taken::Ready(slot);
        }
        match self.take_idle() {
            Some(number) => Taken::Number(number),
            None if self.making_ahead => Taken::Awaited,
            None => Taken::Nothing,
        }
    }

    fn take_idle(&mut self) -> Option<SlotNumber> {
        let number = self.idle.pop_front()?;
        self.handed_out.insert(number);
        Some(number)
    }

    fn pool_has_room(&self, pool: usize) -> bool {
        !self.closing && self.pooled.len() < pool
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotAllocator {
    /// Sets up the host's rules and watches over them, removes every network in the range that nobody claims, and
    /// begins to fill the pool. Changes two settings of the host: IPv4 forwarding, which stays on, and the table
    /// `wrenn`, which the last one to [shut down](Self::shutdown) removes.
    pub async fn start(
        options: NetworkOptions,
        claimed: &BTreeSet<SlotNumber>,
    ) -> Result<Self, NetworkError> {
        let host_rules = rules::host_rules(&options.name_servers);
        let (presence, host_rules) = blocking(move || {
            let presence = Presence::announce()?;
            namespace::write_sysctl("net/ipv4/ip_forward", "1")?;
            rules::apply(&host_rules).map_err(|source| NetworkError::Rules { slot: None, source })?;
            Ok::<_, NetworkError>((presence, host_rules))
        })
        .await?;
        let watch = Watch::start(host_rules);
        let state = State {
            idle: options.slots.iter().filter(|slot| !claimed.contains(slot)).collect(),
            pooled: Vec::new(),
            claimed: claimed.clone(),
            handed_out: BTreeSet::new(),
            making_ahead: false,
            closing: false,
        };
        let shared = Arc::new(Shared {
            slots: options.slots,
            pool: options.pool,
            name_servers: options.name_servers.into(),
            state: Mutex::new(state),
            wanted: Notify::new(),
            settled: Notify::new(),
        });
        shared.sweep().await?;
        let refill = tokio::spawn(refill(shared.clone()));
        Ok(Self { shared, presence, watch, refill })
    }

    /// A slot for a new machine.
    pub async fn acquire(&self) -> Result<NetworkSlot, NetworkError> {
        loop {
            // Before looking, so that nothing is missed.
            let settled = self.shared.settled.notified();
            let taken = self.shared.state().take();
            self.shared.wanted.notify_one();
            match taken {
                Taken::Ready(slot) => return Ok(slot),
                Taken::Number(number) => return self.shared.make(number).await,
                Taken::Awaited => settled.await,
                Taken::Nothing => return Err(NetworkError::Exhausted(self.shared.slots.len())),
            }
        }
    }

    /// The slot of a machine that was found running.
    pub async fn claim(&self, number: SlotNumber) -> Result<NetworkSlot, NetworkError> {
        if !self.shared.state().claimed.remove(&number) {
            return Err(NetworkError::NotClaimed(number));
        }
        let name_servers = self.shared.name_servers.clone();
        match blocking(move || NetworkSlot::open(number, &name_servers)).await {
            Ok(slot) => {
                self.shared.state().handed_out.insert(number);
                Ok(slot)
            }
            Err(error) => {
                // What there is of it is of no use to the machine.
                self.shared.remove(number).await?;
                Err(error)
            }
        }
    }

    /// Takes a slot back after its VMM has ended.
    pub async fn release(&self, mut slot: NetworkSlot) -> Result<(), NetworkError> {
        let number = slot.number;
        if self.shared.pool_has_room() {
            match slot.clean().await {
                Ok(()) => match self.shared.keep(slot) {
                    None => return Ok(()),
                    Some(spare) => slot = spare,
                },
                Err(error) => {
                    tracing::warn!(slot = %number, error = &error as &dyn std::error::Error, "slot not reused");
                }
            }
        }
        // What listens in the namespace would keep it.
        slot.silence().await;
        drop(slot);
        self.shared.remove(number).await
    }

    /// Removes every network in the range that is neither claimed, nor pooled, nor handed out.
    pub async fn sweep(&self) -> Result<(), NetworkError> {
        self.shared.sweep().await
    }

    /// How many more can be acquired; one that is being made ahead is not counted until it is made.
    pub fn free(&self) -> usize {
        let state = self.shared.state();
        state.idle.len() + state.pooled.len()
    }

    /// Removes the slots made ahead. Those of machines stay. The host's rules go when nobody on the host needs them
    /// any more: no other allocator, and no machine that runs without one.
    pub async fn shutdown(self) -> Result<(), NetworkError> {
        self.shared.state().closing = true;
        self.shared.wanted.notify_one();
        // What it is just making is made to its end and goes with the others.
        let _ = self.refill.await;
        let pooled = std::mem::take(&mut self.shared.state().pooled);
        let mut teardown = Teardown::default();
        for slot in pooled {
            let removed = blocking(move || namespace::remove(slot.number)).await;
            collect(&mut teardown, removed);
        }
        self.shared.sweep().await?;
        teardown.finish()?;
        self.watch.stop().await;
        blocking(move || self.presence.leave()).await
    }
}

/// Keeps the pool full. A failure is reported once each time something asks for a slot.
async fn refill(shared: Arc<Shared>) {
    loop {
        while let Some(number) = shared.take_ahead() {
            let made = shared.make_ahead(number).await;
            shared.state().making_ahead = false;
            shared.settled.notify_waiters();
            if let Err(error) = made {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(slot = %number, error, "making a network slot ahead");
                break;
            }
        }
        if shared.state().closing {
            return;
        }
        shared.wanted.notified().await;
    }
}

impl Shared {
    fn pool_has_room(&self) -> bool {
        self.state().pool_has_room(self.pool)
    }

    /// The number of a slot to be made for the pool, if it has room and there is one.
    fn take_ahead(&self) -> Option<SlotNumber> {
        let mut state = self.state();
        if !state.pool_has_room(self.pool) {
            return None;
        }
        let number = state.take_idle()?;
        state.making_ahead = true;
        Some(number)
    }

    async fn make_ahead(&self, number: SlotNumber) -> Result<(), NetworkError> {
        let slot = self.make(number).await?;
        match self.keep(slot) {
            None => Ok(()),
            Some(spare) => {
                drop(spare);
                self.remove(number).await
            }
        }
    }

    /// Puts a slot into the pool, where it is used last. One that it has no room for, as others were made or given back
    /// meanwhile, comes back.
    fn keep(&self, slot: NetworkSlot) -> Option<NetworkSlot> {
        let mut state = self.state();
        if !self.slots.contains(slot.number) || !state.pool_has_room(self.pool) {
            return Some(slot);
        }
        state.handed_out.remove(&slot.number);
        state.pooled.insert(0, slot);
        None
    }

    /// Makes the one of a number that was taken, and gives the number back if that fails.
    async fn make(&self, number: SlotNumber) -> Result<NetworkSlot, NetworkError> {
        let name_servers = self.name_servers.clone();
        let made = match failpoint!("slot.making").await {
            Ok(()) => blocking(move || NetworkSlot::create(number, &name_servers)).await,
            Err(error) => Err(error.into()),
        };
        if made.is_err() {
            self.give_back(number);
        }
        made
    }

    async fn remove(&self, number: SlotNumber) -> Result<(), NetworkError> {
        let removed = blocking(move || namespace::remove(number)).await;
        if removed.is_ok() {
            self.give_back(number);
        }
        Ok(removed?)
    }

    fn give_back(&self, number: SlotNumber) {
        let mut state = self.state();
        state.handed_out.remove(&number);
        // That of a machine of an earlier agent's may be another's from now on.
        if self.slots.contains(number) {
            state.idle.push_back(number);
        }
    }

    async fn sweep(&self) -> Result<(), NetworkError> {
        let found = blocking(namespace::slots).await?;
        let unclaimed: Vec<SlotNumber> = {
            let state = self.state();
            let known = |slot: &SlotNumber| {
                state.claimed.contains(slot)
                    || state.handed_out.contains(slot)
                    || state.pooled.iter().any(|pooled| pooled.number == *slot)
            };
            found.into_iter().filter(|slot| self.slots.contains(*slot) && !known(slot)).collect()
        };
        let mut teardown = Teardown::default();
        for slot in unclaimed {
            tracing::info!(%slot, "removing a network that no capsule claims");
            let removed = blocking(move || namespace::remove(slot)).await;
            collect(&mut teardown, removed);
        }
        Ok(teardown.finish()?)
    }
}

fn collect(teardown: &mut Teardown, removed: Result<(), Failures>) {
    for failure in removed.err().into_iter().flat_map(|failures| failures.0) {
        teardown.failed(failure);
    }
}
