//! The disk of a capsule becomes the image of a template, without its memory:
//!
//! ```text
//!  guest runs       │ stands still │ runs on
//!  guest syncs,     │ clone of the │ put in order, shrunk, free blocks become holes; copied to where images are,
//!  its disk's cache │ disk         │ fsync, rename
//! ```
//! Of what the guest writes after it has synced, the image may hold a part, as after a power failure.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use wrenn_vmm::disk::{self, DiskError, DiskView};
use wrenn_vmm::failpoint;

use super::checkpoint::{Moment, Scope};
use super::error::CapsuleError;
use super::registry::CapsuleRegistry;
use super::spec::name;
use super::steps::Steps;
use super::template::{FORMAT, RecordError, Template, load_record};
use crate::ids::{CapsuleId, TeamId, TemplateId};
use crate::request_id::RequestId;

/// What is kept beside an image that was a capsule's disk.
#[derive(Debug, Serialize, Deserialize)]
struct ImageRecord {
    format: u32,
    /// The capsule it was the disk of.
    source: CapsuleId,
    stopped_us: u64,
}

/// What is told of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// The least that a disk made of it can have.
    pub disk_mib: u32,
    pub allocated_bytes: u64,
    /// How long the guest stood still for it.
    pub stopped_us: u64,
}

impl Image {
    fn at(path: &Path, record: &ImageRecord) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            disk_mib: u32::try_from(metadata.len().div_ceil(1 << 20)).unwrap_or(u32::MAX),
            // The unit of st_blocks, whatever the file system's own.
            allocated_bytes: metadata.blocks() * 512,
            stopped_us: record.stopped_us,
        })
    }
}

impl CapsuleRegistry {
    /// Makes an image of a capsule's disk as it is now, running or paused. One that was made of this capsule before is
    /// answered with as it is.
    pub async fn flatten(
        &self,
        id: CapsuleId,
        (template, team): (TemplateId, TeamId),
        request: RequestId,
    ) -> Result<Image, CapsuleError> {
        let engine = self.engine();
        // To its end, also when the agent stops.
        engine.tasks.track_future(self.make_image(id, (template, team), request)).await
    }

    async fn make_image(
        &self,
        id: CapsuleId,
        (template, team): (TemplateId, TeamId),
        request: RequestId,
    ) -> Result<Image, CapsuleError> {
        let engine = self.engine();
        let _turn = engine.template_turns.take(template).await;
        let taken = |source_id| Err(CapsuleError::TemplateTaken { template, source_id });
        let path = engine.paths.image(&name(team), &name(template));
        match find(&path).map_err(CapsuleError::step("looking at the image"))? {
            Some((record, image)) if record.source == id => return Ok(image),
            Some((record, _)) => return taken(record.source),
            None => {}
        }
        if let Some(snapshot) = Template::open(&engine.paths, template).await? {
            return taken(snapshot.record.source);
        }
        let mut steps = Steps::start("flatten");
        // The clone of the disk is made where snapshots of templates are, and goes with the moment.
        let into = engine.paths.template(&name(template));
        let made = async {
            let moment = self.moment(id, Scope::Disk, into, request).await?;
            steps.done("moment");
            let made = self.publish(id, &moment, &path, &mut steps).await;
            let left = moment.writer.abort().await;
            if let Err(error) = left {
                tracing::warn!(error = %crate::report(&error), "a clone of a disk is left");
            }
            made
        };
        match made.await {
            Ok(image) => {
                steps.finish();
                Ok(image)
            }
            Err(error) => {
                steps.fail(&error);
                Err(error)
            }
        }
    }

    async fn publish(
        &self,
        id: CapsuleId,
        moment: &Moment,
        path: &Path,
        steps: &mut Steps,
    ) -> Result<Image, CapsuleError> {
        let engine = self.engine();
        failpoint!("flatten.taken").await.map_err(CapsuleError::step("taking the moment"))?;
        let clone = moment.writer.disk_path();
        let whole = engine.disks.flatten(&DiskView { path: clone.clone() }).await;
        whole.map_err(CapsuleError::step("making the disk whole"))?;
        disk::compact(&clone).await.map_err(|error| match error {
            DiskError::FileSystem { .. } => CapsuleError::NoImageOf { id, reason: error.to_string() },
            error => CapsuleError::step("making the disk small")(error),
        })?;
        steps.done("compact");
        failpoint!("flatten.compacted").await.map_err(CapsuleError::step("making the disk small"))?;
        let stopped_us = u64::try_from(moment.stopped.as_micros()).unwrap_or(u64::MAX);
        let record = ImageRecord { format: FORMAT, source: id, stopped_us };
        let looking = CapsuleError::step("looking at the image");
        let compact = Image::at(&clone, &record).map_err(looking)?;
        engine.admission.admit_to_disk(compact.allocated_bytes >> 20)?;
        let text = serde_json::to_vec(&record).map_err(CapsuleError::step("writing the image's record"))?;
        disk::publish(&clone, path, &text).await.map_err(CapsuleError::step("making the image"))?;
        steps.done("publish");
        failpoint!("flatten.visible").await.map_err(CapsuleError::step("making the image"))?;
        Image::at(path, &record).map_err(CapsuleError::step("looking at the image"))
    }
}

/// None if there is none.
fn find(path: &Path) -> Result<Option<(ImageRecord, Image)>, RecordError> {
    let Some(directory) = path.parent().filter(|directory| directory.is_dir()) else { return Ok(None) };
    let record: ImageRecord = load_record(directory)?;
    let image = Image::at(path, &record)?;
    Ok(Some((record, image)))
}

#[cfg(test)]
mod tests {
    use wrenn_vmm::paths;

    use super::*;

    #[test]
    fn an_image_is_told_again_by_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tpl-1/rootfs.ext4");
        assert!(find(&path).unwrap().is_none());
        let directory = path.parent().unwrap();
        std::fs::create_dir(directory).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        file.set_len((5 << 20) + 1).unwrap();
        let source = CapsuleId::from_u128(7);
        let record = ImageRecord { format: FORMAT, source, stopped_us: 1500 };
        std::fs::write(paths::template_record(directory), serde_json::to_vec(&record).unwrap()).unwrap();
        let (found, image) = find(&path).unwrap().unwrap();
        assert_eq!(found.source, source);
        assert_eq!(image, Image { disk_mib: 6, allocated_bytes: 0, stopped_us: 1500 });

        std::fs::write(paths::template_record(directory), r#"{"format":2}"#).unwrap();
        assert!(matches!(find(&path), Err(RecordError::Format(2))));
        // A built-in template's, say: nobody's disk.
        std::fs::remove_file(paths::template_record(directory)).unwrap();
        assert!(matches!(find(&path), Err(RecordError::Read(_))));
    }
}
