//! Templates that are snapshots of this host: what is kept with each, how one is opened, and the removal of all
//! that a host has of a template.
//!
//! The record lies in the snapshot's own directory, so that both become visible, and durable, in one step.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use wrenn_vmm::paths::{self, HostPaths, Name};
use wrenn_vmm::snapshot::{Snapshot, SnapshotError};

use super::aside::remove_at_once;
use super::engine::Engine;
use super::error::{CapsuleError, Teardown};
use super::golden::Goldens;
use super::spec::{CapsuleSpec, EnvVar, name};
use crate::files;
use crate::ids::{CapsuleId, TemplateId};
use crate::token::Token;

/// Of the record's shape. Another one is refused, not guessed at.
pub const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot read it")]
    Read(#[from] std::io::Error),
    #[error("it is damaged")]
    Damaged(#[from] serde_json::Error),
    #[error("it has format {0}, this agent knows {FORMAT}")]
    Format(u32),
}

/// What is kept with a snapshot or an image that is a template, in its directory.
pub fn load_record<T: DeserializeOwned>(directory: &Path) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let bytes = std::fs::read(paths::template_record(directory))?;
    let Versioned { format } = serde_json::from_slice(&bytes)?;
    if format != FORMAT {
        return Err(RecordError::Format(format));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// What is kept with a snapshot that is a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TemplateRecord {
    format: u32,
    /// The capsule it is a snapshot of.
    pub source: CapsuleId,
    pub default_user: String,
    /// Without what was secret.
    pub env: Vec<EnvVar>,
    /// The one that the guest in the snapshot's memory still asks for: the first call to a copy carries it, and
    /// replaces it.
    pub token: Token,
    /// What was told to whoever asked for the snapshot, to be told again.
    pub written_bytes: u64,
    pub stopped_us: u64,
}

impl TemplateRecord {
    pub fn new(spec: &CapsuleSpec, token: Token, written_bytes: u64, stopped_us: u64) -> Self {
        Self {
            format: FORMAT,
            source: spec.id,
            default_user: spec.default_user.clone(),
            env: spec.public_env(),
            token,
            written_bytes,
            stopped_us,
        }
    }

    /// What a capsule of this template is asked to be, where it was not told otherwise.
    pub fn complete(&self, spec: &mut CapsuleSpec) {
        let own = std::mem::take(&mut spec.env);
        let kept = self.env.iter().filter(|var| own.iter().all(|other| other.name != var.name));
        spec.env = kept.cloned().chain(own.iter().cloned()).collect();
        if spec.default_user.is_empty() {
            spec.default_user.clone_from(&self.default_user);
        }
    }

    /// Into a snapshot's directory, readable by root alone; durable.
    pub fn store(&self, directory: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(std::io::Error::from)?;
        files::replace(&paths::template_record(directory), &bytes, true)
    }
}

/// A snapshot that capsules can be made from.
pub struct Template {
    pub record: TemplateRecord,
    pub snapshot: Snapshot,
}

impl Template {
    /// None if this host has no such snapshot.
    pub async fn open(host: &HostPaths, template: TemplateId) -> Result<Option<Self>, CapsuleError> {
        let directory = host.template(&name(template));
        let snapshot = match Snapshot::open(&directory).await {
            Ok(snapshot) => snapshot,
            Err(SnapshotError::Missing(_)) => return Ok(None),
            Err(error) => return Err(CapsuleError::step("opening the template")(error)),
        };
        let record = load_record(&directory).map_err(CapsuleError::step("reading the template's record"))?;
        Ok(Some(Self { record, snapshot }))
    }

    /// The one that a capsule shall be made from.
    pub async fn of(host: &HostPaths, spec: &CapsuleSpec) -> Result<Self, CapsuleError> {
        let template = Self::open(host, spec.template).await?;
        let template =
            template.ok_or_else(|| CapsuleError::NoSnapshot { template: spec.template.to_string() })?;
        let (vcpus, memory_mib, disk_mib) = template.size();
        same("vcpus", spec.vcpus, vcpus)?;
        same("memoryMib", spec.memory_mib, memory_mib)?;
        same("diskMib", spec.disk_mib, disk_mib)?;
        Ok(template)
    }

    /// vCPUs, and MiB of memory and disk.
    pub fn size(&self) -> (u32, u32, u32) {
        let manifest = self.snapshot.manifest();
        let disk_bytes = manifest.disk.as_ref().map_or(0, |disk| disk.bytes);
        let disk_mib = u32::try_from(disk_bytes >> 20).unwrap_or(u32::MAX);
        (manifest.machine.vcpus, manifest.machine.memory_mib, disk_mib)
    }
}

fn same(field: &'static str, asked: u32, is: u32) -> Result<(), CapsuleError> {
    if asked == is {
        return Ok(());
    }
    let message = format!("the template is a snapshot with {field} {is}: {asked} cannot be had from it");
    Err(CapsuleError::Invalid { field, message })
}

/// One after the other for each template: made, made again by a repeated request, deleted.
#[derive(Default)]
pub struct TemplateTurns(Mutex<HashMap<TemplateId, Weak<tokio::sync::Mutex<()>>>>);

impl TemplateTurns {
    /// Waits for it. The turn ends with the guard.
    pub async fn take(&self, template: TemplateId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(&template).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(template, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

/// Removes a template's snapshot, golden snapshots and images. What runs from them holds its own links.
pub async fn delete(engine: &Arc<Engine>, template: TemplateId) -> Result<(), CapsuleError> {
    let _turn = engine.template_turns.take(template).await;
    let name = name(template);
    let mut teardown = Teardown::default();
    // Images first: without one no golden snapshot is made any more.
    for team in directories(&engine.paths.images()) {
        let image = engine.paths.image(&team, &name);
        if let Some(directory) = image.parent().filter(|directory| directory.is_dir()) {
            teardown.note("removing the image", remove_at_once(directory).await);
        }
    }
    teardown.merge(Goldens::remove_all_of(engine, &name).await);
    if let Ok(snapshot) = Snapshot::open(&engine.paths.template(&name)).await {
        teardown.note("letting its memory go", engine.vmm.forget(&snapshot).await);
    }
    teardown.note("removing the snapshot", remove_at_once(&engine.paths.template(&name)).await);
    teardown.finish().map_err(CapsuleError::step("deleting the template"))
}

fn directories(of: &Path) -> impl Iterator<Item = Name> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use wrenn_vmm::network::EgressPolicy;

    use super::*;
    use crate::ids::TeamId;

    fn spec() -> CapsuleSpec {
        let var = |name: &str, value: &str| EnvVar { name: name.into(), value: value.into() };
        CapsuleSpec {
            id: CapsuleId::from_u128(1),
            team: TeamId::from_u128(2),
            template: TemplateId::from_u128(3),
            template_team: TeamId::from_u128(2),
            vcpus: 1,
            memory_mib: 256,
            disk_mib: 1024,
            env: vec![var("COLOR", "red"), var("KEY", "secret value")],
            secret_env: vec!["KEY".into()],
            default_user: "worker".into(),
            egress: EgressPolicy::default(),
            from_snapshot: false,
            parent: None,
        }
    }

    #[test]
    fn a_record_is_private_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::generate().unwrap();
        TemplateRecord::new(&spec(), token.clone(), 4096, 1500).store(dir.path()).unwrap();
        let path = paths::template_record(dir.path());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!std::fs::read_to_string(&path).unwrap().contains("secret value"));
        let read = load_record::<TemplateRecord>(dir.path()).unwrap();
        assert!(read.token == token);
        assert_eq!((read.source, read.written_bytes, read.stopped_us), (spec().id, 4096, 1500));

        std::fs::write(&path, r#"{"format":2}"#).unwrap();
        assert!(matches!(load_record::<TemplateRecord>(dir.path()), Err(RecordError::Format(2))));
    }

    #[test]
    fn a_copy_has_the_environment_and_user_of_its_template_where_it_asks_for_no_other() {
        let record = TemplateRecord::new(&spec(), Token::generate().unwrap(), 0, 0);
        let var = |name: &str, value: &str| EnvVar { name: name.into(), value: value.into() };
        let mut copy = CapsuleSpec { env: vec![var("SIZE", "7")], default_user: String::new(), ..spec() };
        record.complete(&mut copy);
        assert_eq!(copy.env, [var("COLOR", "red"), var("SIZE", "7")]);
        assert_eq!(copy.default_user, "worker");
        let mut other =
            CapsuleSpec { env: vec![var("COLOR", "blue")], default_user: "root".into(), ..spec() };
        record.complete(&mut other);
        assert_eq!((other.env, other.default_user.as_str()), (vec![var("COLOR", "blue")], "root"));
    }

    #[test]
    fn another_size_than_the_snapshots_names_the_field() {
        same("vcpus", 2, 2).unwrap();
        match same("diskMib", 2048, 1024) {
            Err(CapsuleError::Invalid { field, message }) => {
                assert_eq!(field, "diskMib");
                assert!(message.contains("1024") && message.contains("2048"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn one_template_is_worked_on_by_one_at_a_time() {
        let turns = TemplateTurns::default();
        let first = turns.take(TemplateId::from_u128(1)).await;
        let _other = turns.take(TemplateId::from_u128(2)).await;
        let mut second = Box::pin(turns.take(TemplateId::from_u128(1)));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
    }
}
