//! Which host takes a capsule: the one with the most headroom at its tightest resource after it.

use std::collections::HashMap;

use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use wrenn_entities::{
    HostId,
    capsule::{self, CapsuleState},
    host::{self, HostStatus},
};

use crate::{Error, SchemaConfig};

/// What a capsule takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    pub vcpus: i64,
    pub memory_mib: i64,
    pub disk_mib: i64,
}

impl Demand {
    pub(crate) fn of(row: &capsule::Model) -> Self {
        Self { vcpus: row.vcpus.into(), memory_mib: row.memory_mib.into(), disk_mib: row.disk_mib.into() }
    }

    /// Of one that is paused, to go on: its disk it has.
    pub(crate) fn of_paused(row: &capsule::Model) -> Self {
        Self { disk_mib: 0, ..Self::of(row) }
    }

    /// Of so many like this.
    pub(crate) fn times(self, count: i64) -> Self {
        Self {
            vcpus: self.vcpus * count,
            memory_mib: self.memory_mib * count,
            disk_mib: self.disk_mib * count,
        }
    }
}

/// What is left of one resource after a capsule, as a share of all there is; below zero it does not fit. What takes
/// nothing always fits.
fn headroom(total: f64, placed: i64, demand: i64) -> f64 {
    if demand == 0 {
        return 1.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "sums of MiB and of vCPUs stay far below 2^52")]
    let taken = (placed + demand) as f64;
    if total > 0.0 { (total - taken) / total } else { -1.0 }
}

/// The tightest resource of `host` after the demand, and how much of it would be left.
fn tightest(
    host: &host::Model,
    placed: Demand,
    demand: Demand,
    (candidates, config): (Candidates<'_>, &SchemaConfig),
) -> (&'static str, f64) {
    let cpu = headroom(f64::from(host.cpus) * config.cpu_overcommit, placed.vcpus, demand.vcpus);
    let memory =
        headroom(f64::from(host.memory_mib) * config.memory_overcommit, placed.memory_mib, demand.memory_mib);
    let disk = headroom(f64::from(host.disk_mib) * config.disk_overcommit, placed.disk_mib, demand.disk_mib);
    // The books may say yes while the machine is full with something else: its own figures must allow it too, and
    // the disk must be able to take the memory when the capsule is paused.
    let full = |available_mib: i32| {
        !matches!(candidates, Candidates::Home(_)) && i64::from(available_mib) < demand.memory_mib
    };
    let memory = if full(host.memory_available_mib) { -1.0 } else { memory };
    let disk = if full(host.disk_available_mib) { -1.0 } else { disk };
    [("CPU", cpu), ("memory", memory), ("disk", disk)]
        .into_iter()
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .unwrap_or(("CPU", -1.0))
}

/// The hosts that can be chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Candidates<'a> {
    /// All but those that were tried.
    AllBut(&'a [HostId]),
    /// The one that holds the files that are wanted.
    Holder(HostId),
    /// The one where it is paused. That host looks at its own figures itself, and those known here may be from before
    /// another one was paused to make room.
    Home(HostId),
}

impl Candidates<'_> {
    fn select(self) -> Select<host::Entity> {
        let online = host::Entity::find().filter(host::Column::Status.eq(HostStatus::Online));
        match self {
            Self::AllBut(tried) => online.filter(host::Column::Id.is_not_in(tried.iter().copied())),
            Self::Holder(host) | Self::Home(host) => online.filter(host::Column::Id.eq(host)),
        }
    }

    fn none_online(self) -> Error {
        Error::unavailable(match self {
            Self::AllBut([]) => "no host is online",
            Self::AllBut(_) => "no other host is online",
            Self::Holder(_) => "the only host that has what this is made from is out of reach at the moment",
            Self::Home(_) => "the capsule's host is out of reach at the moment",
        })
    }

    fn too_small(self, resource: &str) -> Error {
        Error::resource_exhausted(match self {
            Self::AllBut(_) => format!("no host has enough {resource} left for this capsule"),
            Self::Holder(_) => {
                format!("the only host that has what this is made from has not enough {resource} left")
            }
            Self::Home(_) => format!("the capsule's host has not enough {resource} left for it to go on"),
        })
    }
}

/// Chooses among the candidates that are online. To be called in the transaction that puts the capsules there: the
/// hosts stay locked, so that two choices never count on the same room.
pub(crate) async fn choose(
    db: &impl ConnectionTrait,
    config: &SchemaConfig,
    demand: Demand,
    candidates: Candidates<'_>,
) -> Result<HostId, Error> {
    let online = candidates.select().order_by_asc(host::Column::Id).lock_exclusive().all(db).await?;
    if online.is_empty() {
        return Err(candidates.none_online());
    }
    let placed = placed(db).await?;
    let rated = online.iter().map(|host| {
        let (resource, left) =
            tightest(host, placed.get(&host.id).copied().unwrap_or_default(), demand, (candidates, config));
        (host.id, resource, left)
    });
    match rated.max_by(|a, b| a.2.total_cmp(&b.2)) {
        Some((id, _, left)) if left >= 0.0 => Ok(id),
        Some((_, resource, _)) => Err(candidates.too_small(resource)),
        None => Err(candidates.none_online()),
    }
}

/// Host, state, and the vCPUs, MiB of memory and MiB of disk of the capsules of both.
type Sum = (HostId, CapsuleState, Option<i64>, Option<i64>, Option<i64>);

/// What is given out on each host. A paused capsule takes only its disk.
async fn placed(db: &impl ConnectionTrait) -> Result<HashMap<HostId, Demand>, Error> {
    let sums: Vec<Sum> = capsule::Entity::find()
        .select_only()
        .column(capsule::Column::HostId)
        .column(capsule::Column::State)
        .column_as(capsule::Column::Vcpus.sum(), "vcpus")
        .column_as(capsule::Column::MemoryMib.sum(), "memory_mib")
        .column_as(capsule::Column::DiskMib.sum(), "disk_mib")
        .filter(capsule::Column::State.ne(CapsuleState::Stopped))
        .filter(capsule::Column::HostId.is_not_null())
        .group_by(capsule::Column::HostId)
        .group_by(capsule::Column::State)
        .into_tuple()
        .all(db)
        .await?;
    let mut placed: HashMap<HostId, Demand> = HashMap::new();
    for (host, state, vcpus, memory_mib, disk_mib) in sums {
        let entry = placed.entry(host).or_default();
        entry.disk_mib += disk_mib.unwrap_or(0);
        if !matches!(state, CapsuleState::Paused | CapsuleState::Error) {
            entry.vcpus += vcpus.unwrap_or(0);
            entry.memory_mib += memory_mib.unwrap_or(0);
        }
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use wrenn_entities::{id::TypedId, time::now};

    use super::*;

    fn host(memory_mib: i32, memory_available_mib: i32) -> host::Model {
        host::Model {
            id: HostId::generate(),
            name: "h".into(),
            status: HostStatus::Online,
            address: None,
            arch: "x86_64".into(),
            cpus: 2,
            memory_mib,
            memory_available_mib,
            disk_mib: 100_000,
            disk_available_mib: 50_000,
            vmm: String::new(),
            disk_store: String::new(),
            agent_version: String::new(),
            last_heartbeat_at: None,
            created_at: now(),
        }
    }

    const ANY: Candidates = Candidates::AllBut(&[]);
    const DEMAND: Demand = Demand { vcpus: 1, memory_mib: 1024, disk_mib: 1024 };

    #[test]
    fn the_tightest_resource_is_named() {
        let config = SchemaConfig::new("");
        let (resource, left) = tightest(&host(2048, 2048), Demand::default(), DEMAND, (ANY, &config));
        assert_eq!(resource, "memory");
        assert!((left - 0.5).abs() < 1e-9, "{left}");
        let placed = Demand { vcpus: 32, ..Demand::default() };
        let (resource, left) = tightest(&host(20_480, 20_480), placed, DEMAND, (ANY, &config));
        assert_eq!(resource, "CPU");
        assert!(left < 0.0);
    }

    #[test]
    fn the_machine_itself_must_allow_it() {
        let config = SchemaConfig::new("");
        let host = host(20_480, 512);
        let (resource, left) = tightest(&host, Demand::default(), DEMAND, (ANY, &config));
        assert_eq!(resource, "memory");
        assert!(left < 0.0);
        let (_, left) = tightest(&host, Demand::default(), DEMAND, (Candidates::Home(host.id), &config));
        assert!(left > 0.0, "{left}");
    }
}
