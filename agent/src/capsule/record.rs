//! What is written about a capsule at each transition, so that the next agent finds it again.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wrenn_vmm::driver::MachineRecord;

use super::spec::CapsuleSpec;
use super::view::{Cause, State};
use crate::clock::now_ns;
use crate::files;
use crate::token::Token;

/// Of the record's shape. Another one is refused, not guessed at.
const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} has format {found}, this agent knows {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Everything about one capsule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    pub spec: CapsuleSpec,
    pub token: Token,
    pub timeout_sec: u32,
    pub state: State,
    pub cause: Option<Cause>,
    pub revision: u64,
    /// When the present state was entered. Nanoseconds since the Unix epoch, as the next two.
    pub since_ns: i64,
    pub started_at_ns: i64,
    pub last_active_at_ns: i64,
    /// Of the present life, while there is one; names its slot too.
    pub machine: Option<MachineRecord>,
    /// Processes that count as activity while they run.
    pub keep_awake: Vec<u32>,
}

impl Record {
    /// Of a capsule that is about to be made.
    pub fn new(spec: CapsuleSpec, token: Token, timeout_sec: u32) -> Self {
        Self {
            format: FORMAT,
            spec,
            token,
            timeout_sec,
            state: State::Starting,
            cause: None,
            revision: 1,
            since_ns: now_ns(),
            started_at_ns: 0,
            last_active_at_ns: now_ns(),
            machine: None,
            keep_awake: Vec::new(),
        }
    }

    /// Enters a state.
    pub fn enter(&mut self, state: State, cause: Option<Cause>) {
        self.state = state;
        self.cause = cause;
        self.revision += 1;
        self.since_ns = now_ns();
    }
}

/// Whether a record must survive a power failure, which no running machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Process,
    Power,
}

/// Where a record lives.
#[derive(Debug, Clone)]
pub struct RecordFile(PathBuf);

impl RecordFile {
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// None when there is none.
    pub fn load(&self) -> Result<Option<Record>, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let bytes = match std::fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Read { path: self.path(), source }),
        };
        let damaged = |source| RecordError::Damaged { path: self.path(), source };
        let Versioned { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(RecordError::Format { path: self.path(), found: format });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Replaces the record atomically.
    pub async fn store(&self, record: &Record, durability: Durability) -> Result<(), RecordError> {
        let failed = |source| RecordError::Write { path: self.path(), source };
        let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        match durability {
            // A few system calls on a cached file system.
            Durability::Process => files::replace(&self.0, &bytes, false).map_err(failed),
            Durability::Power => {
                let path = self.path();
                tokio::task::spawn_blocking(move || files::replace(&path, &bytes, true))
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
                    .map_err(failed)
            }
        }
    }

    fn path(&self) -> PathBuf {
        Path::to_owned(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use wrenn_vmm::network::EgressPolicy;

    use super::*;
    use crate::ids::{CapsuleId, TeamId, TemplateId};

    fn record() -> Record {
        let spec = CapsuleSpec {
            id: CapsuleId::from_u128(1),
            team: TeamId::from_u128(2),
            template: TemplateId::from_u128(0),
            template_team: TeamId::from_u128(0),
            vcpus: 1,
            memory_mib: 256,
            disk_mib: 5120,
            env: vec![],
            secret_env: vec![],
            default_user: "root".into(),
            from_snapshot: false,
            parent: None,
            egress: EgressPolicy::new(true, &["*.example.com"], &["203.0.113.0/24"]).unwrap(),
        };
        Record::new(spec, Token::generate().unwrap(), 60)
    }

    #[tokio::test]
    async fn a_record_survives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = RecordFile::at(dir.path().join("capsule.json"));
        assert!(file.load().unwrap().is_none());
        let mut written = record();
        written.enter(State::Paused, Some(Cause::new("IDLE", "no activity for 60 s")));
        for durability in [Durability::Process, Durability::Power] {
            file.store(&written, durability).await.unwrap();
            let read = file.load().unwrap().unwrap();
            assert_eq!((read.state, read.cause, read.revision), (State::Paused, written.cause.clone(), 2));
            assert_eq!(read.spec, written.spec);
        }
    }

    #[tokio::test]
    async fn a_foreign_or_damaged_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capsule.json");
        let file = RecordFile::at(path.clone());
        std::fs::write(&path, br#"{"format":2,"new":"shape"}"#).unwrap();
        assert!(matches!(file.load(), Err(RecordError::Format { found: 2, .. })));
        std::fs::write(&path, b"{\"form").unwrap();
        assert!(matches!(file.load(), Err(RecordError::Damaged { .. })));
    }
}
