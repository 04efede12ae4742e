//! Who works on through the storm: capsules of its own, random operations on them, and a look at each whenever it can.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use wrenn_tests::counter::Counter;
use wrenn_tests::graphql::{Capsule, Client, Failure};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

use crate::random::Random;
use crate::tally::Tally;
use crate::weather::{Outlook, Weather};

/// Capsules that one of them has at a time.
const MOST: usize = 4;

/// A row that nobody drives any more is settled after a quarter of a minute; a dead host must first come back.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between attempts at a name that is not free yet.
const RETRY: Duration = Duration::from_secs(1);

/// States that a capsule may stay in.
const STABLE: [&str; 4] = ["RUNNING", "PAUSED", "STOPPED", "ERROR"];

#[derive(Debug, Clone, Copy)]
enum Deed {
    Create,
    Look,
    PauseOrResume,
    Snapshot,
    Fork,
    KillVmm,
    Destroy,
}

const DEEDS: &[(usize, Deed)] = &[
    (14, Deed::Create),
    (24, Deed::Look),
    (34, Deed::PauseOrResume),
    (7, Deed::Snapshot),
    (6, Deed::Fork),
    (6, Deed::KillVmm),
    (9, Deed::Destroy),
];

/// A capsule as it must be.
struct Held {
    id: String,
    running: bool,
    counter: Counter,
}

pub struct Sailor<'a> {
    pub stack: &'a Stack,
    pub weather: &'a Weather,
    pub tally: &'a Tally,
    pub random: Random,
    pub number: u64,
    held: Vec<Held>,
    /// Its last snapshot was cut off: whoever made that may have its name for as long as a row that nobody drives.
    name_in_doubt: bool,
}

impl<'a> Sailor<'a> {
    pub fn new(stack: &'a Stack, weather: &'a Weather, tally: &'a Tally, seed: u64, number: u64) -> Self {
        Self {
            stack,
            weather,
            tally,
            random: Random::new(seed, number),
            number,
            held: Vec::new(),
            name_in_doubt: false,
        }
    }

    /// Until time is up; then every capsule it has is looked at once more.
    pub async fn work(mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            let deed = self.random.pick(DEEDS);
            self.act(deed).await.with_context(|| format!("sailor {}, {deed:?}", self.number))?;
        }
        for index in 0..self.held.len() {
            self.look(index).await.with_context(|| format!("sailor {}, at the end", self.number))?;
        }
        Ok(())
    }

    async fn act(&mut self, deed: Deed) -> Result<()> {
        if matches!(deed, Deed::Create) || self.held.is_empty() {
            return if self.held.len() < MOST { self.create(json!({}), None).await } else { Ok(()) };
        }
        let index = self.random.below(self.held.len());
        match deed {
            Deed::Create => Ok(()),
            Deed::Look => self.look(index).await,
            Deed::PauseOrResume if self.held[index].running => self.pause(index).await,
            Deed::PauseOrResume => self.resume(index).await,
            Deed::Snapshot => self.snapshot(index).await,
            Deed::Fork => self.fork(index).await,
            Deed::KillVmm => self.kill_vmm(index).await,
            Deed::Destroy => self.destroy(index).await,
        }
    }

    fn client(&self) -> &'a Client {
        self.stack.client()
    }

    /// What an operation brought: nothing if a kill came in its way; any other failure is the storm's verdict.
    fn judge<T>(&self, name: &'static str, before: Outlook, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => {
                self.tally.done(name);
                Ok(Some(value))
            }
            Err(_) if self.weather.disturbed_since(before) => {
                self.tally.disturbed(name);
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("{name} failed though nothing was killed")),
        }
    }

    /// A new capsule. `from`: what the counter of the snapshot had said when it was taken.
    async fn create(&mut self, mut input: serde_json::Value, from: Option<Counter>) -> Result<()> {
        let client = self.client();
        input["labels"] = json!({ "sailor": self.number.to_string() });
        let before = self.weather.look();
        let made = client.create(input).await;
        let Some(capsule) = self.judge("create", before, made)? else { return self.drop_the_unknown().await };
        let before = self.weather.look();
        let counter = match from {
            Some(mut counter) => counter.goes_on(client, &capsule.id).await.map(|()| counter),
            None => Counter::start(client, &capsule.id).await,
        };
        match self.judge("first look", before, counter)? {
            Some(counter) => {
                if from.is_some() {
                    self.tally.restored();
                }
                self.held.push(Held { id: capsule.id, running: true, counter });
                Ok(())
            }
            // It may have no counter yet.
            None => self.end(&capsule.id).await,
        }
    }

    /// A create or a fork that was cut off may have made capsules or not, which carry the label of this sailor; whichever
    /// it is, it must be possible to end them.
    async fn drop_the_unknown(&self) -> Result<()> {
        let labels = json!({ "labels": { "sailor": self.number.to_string() } });
        let rows = wait::until("the list of capsules", PATIENCE, async || {
            self.client().capsules(labels.clone()).await.map(Some)
        })
        .await?;
        for row in rows.iter().filter(|row| self.held.iter().all(|held| held.id != row.id)) {
            self.end(&row.id).await?;
        }
        Ok(())
    }

    /// Destroyed in the end, however often it takes.
    async fn end(&self, id: &str) -> Result<()> {
        wait::until_true(format!("{id} destroyed"), PATIENCE, async || {
            Ok(self.client().destroy(id).await?.state == "STOPPED")
        })
        .await
    }

    /// The state a capsule comes to rest in. One that was not killed and not destroyed is never lost.
    async fn settled(&self, id: &str) -> Result<Capsule> {
        wait::until(format!("{id} in a stable state"), PATIENCE, async || {
            let capsule = self.client().capsule(id).await?.context("its row is gone")?;
            ensure!(STABLE.contains(&capsule.state.as_str()), "{} is {}", capsule.id, capsule.state);
            Ok(Some(capsule))
        })
        .await
    }

    async fn rest(&mut self, index: usize) -> Result<()> {
        let capsule = self.settled(&self.held[index].id).await?;
        self.held[index].running = match capsule.state.as_str() {
            "RUNNING" => true,
            "PAUSED" => false,
            _ => bail!("a capsule is lost: {capsule:?}"),
        };
        Ok(())
    }

    /// Its state is what it must be; if it runs, neither number of its counter has gone back.
    async fn look(&mut self, index: usize) -> Result<()> {
        let expected = self.held[index].running;
        self.rest(index).await?;
        let held = &mut self.held[index];
        ensure!(
            held.running == expected,
            "{} changed its state by itself: running is {}",
            held.id,
            held.running
        );
        if !held.running {
            return Ok(());
        }
        let before = self.weather.look();
        let (id, mut counter) = (held.id.clone(), held.counter);
        let outcome = counter.check(self.client(), &id).await;
        if self.judge("look", before, outcome)?.is_some() {
            self.held[index].counter = counter;
            self.tally.checked();
        }
        Ok(())
    }

    async fn pause(&mut self, index: usize) -> Result<()> {
        self.look(index).await?;
        let before = self.weather.look();
        let outcome = self.client().pause(&self.held[index].id).await;
        match self.judge("pause", before, outcome)? {
            Some(_) => self.held[index].running = false,
            None => self.rest(index).await?,
        }
        Ok(())
    }

    async fn resume(&mut self, index: usize) -> Result<()> {
        let before = self.weather.look();
        let outcome = self.client().resume(&self.held[index].id).await;
        match self.judge("resume", before, outcome)? {
            Some(_) => self.held[index].running = true,
            None => self.rest(index).await?,
        }
        if !self.held[index].running {
            return Ok(());
        }
        let before = self.weather.look();
        let (id, mut counter) = (self.held[index].id.clone(), self.held[index].counter);
        let outcome = counter.goes_on(self.client(), &id).await;
        if self.judge("look", before, outcome)?.is_some() {
            self.held[index].counter = counter;
            self.tally.restored();
        }
        Ok(())
    }

    /// A template of the capsule as it is, and a new capsule of that.
    async fn snapshot(&mut self, index: usize) -> Result<()> {
        self.look(index).await?;
        let (id, counter) = (self.held[index].id.clone(), self.held[index].counter);
        let began = Instant::now();
        let template = loop {
            let before = self.weather.look();
            let outcome = self.client().snapshot(&id, &format!("storm-{}", self.number)).await;
            let conflict = outcome.as_ref().is_err_and(|error| Failure::code_of(error) == Some("CONFLICT"));
            if !(self.name_in_doubt && conflict && began.elapsed() < PATIENCE) {
                break self.judge("snapshot", before, outcome)?;
            }
            tokio::time::sleep(RETRY).await;
        };
        self.name_in_doubt = template.is_none();
        self.rest(index).await?;
        match template {
            Some(template) if self.held.len() < MOST => {
                self.create(json!({ "template": template.id }), Some(counter)).await
            }
            _ => Ok(()),
        }
    }

    async fn fork(&mut self, index: usize) -> Result<()> {
        let room = MOST.saturating_sub(self.held.len());
        if room == 0 {
            return Ok(());
        }
        self.look(index).await?;
        let (id, from) = (self.held[index].id.clone(), self.held[index].counter);
        let count = 1 + self.random.below(room);
        let before = self.weather.look();
        let outcome = self.client().fork(&id, count).await;
        let copies = self.judge("fork", before, outcome)?;
        self.rest(index).await?;
        let Some(copies) = copies else {
            return self.drop_the_unknown().await;
        };
        for copy in copies {
            let mut counter = from;
            let before = self.weather.look();
            let outcome = counter.goes_on(self.client(), &copy.id).await;
            match self.judge("first look", before, outcome)? {
                Some(()) => {
                    self.tally.restored();
                    self.held.push(Held { id: copy.id, running: true, counter });
                }
                None => self.end(&copy.id).await?,
            }
        }
        Ok(())
    }

    /// Its end must be noticed, and the cause said.
    async fn kill_vmm(&mut self, index: usize) -> Result<()> {
        if !self.held[index].running {
            return Ok(());
        }
        self.look(index).await?;
        let held = self.held.swap_remove(index);
        let vmm = self.stack.vmm_of(&held.id).with_context(|| format!("{} runs without a VMM", held.id))?;
        kill(Pid::from_raw(vmm.cast_signed()), Signal::SIGKILL).context("killing a VMM")?;
        self.tally.killed("VMM");
        let end = wait::until(format!("the end of {} noticed", held.id), PATIENCE, async || {
            let capsule = self.client().capsule(&held.id).await?.context("its row is gone")?;
            ensure!(capsule.state != "RUNNING", "still said to run");
            Ok(STABLE.contains(&capsule.state.as_str()).then_some(capsule))
        })
        .await?;
        ensure!(end.state == "STOPPED" && !end.cause_code().is_empty(), "its VMM was killed, but {end:?}");
        ensure!(self.stack.vmm_of(&held.id).is_none(), "{} has a VMM again", held.id);
        Ok(())
    }

    async fn destroy(&mut self, index: usize) -> Result<()> {
        let held = self.held.swap_remove(index);
        let before = self.weather.look();
        let outcome = self.client().destroy(&held.id).await;
        if self.judge("destroy", before, outcome)?.is_none() {
            self.end(&held.id).await?;
        }
        Ok(())
    }
}
