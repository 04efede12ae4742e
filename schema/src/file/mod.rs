//! Files in capsules: what there is, changing it, watching it, and their content in both directions.

mod input;
mod mutation;
mod subscription;
pub mod transfer;

use std::time::Duration;

use async_graphql::{Enum, SimpleObject};
use chrono::{DateTime, Utc};
use serde::Serialize;
use wrenn_entities::{capsule::Model, time};
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use self::input::Path;
pub use self::{mutation::FileMutation, subscription::FileSubscription};
use crate::{
    Error, Services,
    access::RequestId,
    capsule::reach::running_on,
    host::{answer, requested},
    scalar::BigInt,
};

/// How long a host may take to answer about files.
const CALL: Duration = Duration::from_secs(30);
/// Levels of a directory that can be listed at once; the contract's own bound.
const DEPTH: std::ops::RangeInclusive<i32> = 1..=16;

/// Something in a capsule's file system.
// As JSON, too, which is the same as in GraphQL.
#[derive(SimpleObject, Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    pub name: String,
    /// Absolute.
    pub path: String,
    pub kind: FileKind,
    /// Bytes.
    pub size: BigInt,
    /// Permission bits, as in chmod.
    pub mode: i32,
    /// A name where the capsule knows it, else a number.
    pub owner: String,
    pub group: String,
    /// By the capsule's clock.
    pub modified_at: DateTime<Utc>,
    pub symlink_target: Option<String>,
    /// Of a directory within the depth that was asked for, ordered by name.
    #[serde(skip)]
    pub children: Option<Vec<FileEntry>>,
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    /// A device, a pipe, a socket.
    Other,
}

impl From<envd::FileKind> for FileKind {
    fn from(kind: envd::FileKind) -> Self {
        match kind {
            envd::FileKind::File => Self::File,
            envd::FileKind::Directory => Self::Directory,
            envd::FileKind::Symlink => Self::Symlink,
            envd::FileKind::Other | envd::FileKind::Unspecified => Self::Other,
        }
    }
}

impl FileEntry {
    /// `levels` of it are known, itself not counted.
    fn from_wire(entry: envd::FileEntry, levels: i32) -> Self {
        let kind = entry.kind().into();
        let listed = kind == FileKind::Directory && levels > 0;
        let children =
            || entry.children.into_iter().map(|child| Self::from_wire(child, levels - 1)).collect();
        Self {
            kind,
            children: listed.then(children),
            name: entry.name,
            path: entry.path,
            size: BigInt(entry.size),
            mode: i32::try_from(entry.mode).unwrap_or(0),
            owner: entry.owner,
            group: entry.group,
            modified_at: time::from_nanos(entry.modified_at_ns).unwrap_or_default(),
            symlink_target: entry.symlink_target,
        }
    }

    /// Of an answer that always has one; a host that leaves it out is broken.
    fn alone(entry: Option<envd::FileEntry>) -> Result<Self, Error> {
        let entry = entry.ok_or_else(|| Error::Task("the host named no file".to_owned()))?;
        Ok(Self::from_wire(entry, 0))
    }
}

/// What is in a directory of a running capsule, down to `depth` levels.
pub(crate) async fn list(
    services: &Services,
    request_id: &RequestId,
    row: &Model,
    path: String,
    depth: i32,
) -> Result<Vec<FileEntry>, Error> {
    let depth = crate::capsule::rules::within("depth", depth, &DEPTH)?;
    let path = Path::checked("path", path)?;
    let mut client = services.hosts.get(running_on(row)?).await?;
    let directory = envd::ListDirectoryRequest {
        path: path.0,
        user: String::new(),
        depth: u32::try_from(depth).unwrap_or(1),
    };
    let message = agent::ListDirectoryRequest { capsule_id: row.id.to_string(), directory: Some(directory) };
    let listed = answer("ListDirectory", CALL, client.list_directory(requested(message, request_id))).await?;
    Ok(listed.entries.into_iter().map(|entry| FileEntry::from_wire(entry, depth - 1)).collect())
}
