//! What golden snapshots this host has and makes, for those who choose hosts and watch over disks.

use std::str::FromStr;
use std::time::UNIX_EPOCH;

use wrenn_vmm::paths::GoldenKey;

use super::engine::Engine;
use super::golden_budget;
use crate::ids::TemplateId;

/// All of a host, or those of one template.
#[derive(Debug)]
pub struct GoldenStatus {
    /// The one used last first.
    pub goldens: Vec<GoldenState>,
    /// Of all templates, whichever were asked for.
    pub total_bytes: u64,
    pub budget_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct GoldenState {
    pub template: TemplateId,
    pub key: GoldenKey,
    /// Whether capsules can be made of it now, not only as soon as it is made.
    pub ready: bool,
    pub allocated_bytes: u64,
    /// Nanoseconds since the Unix epoch; 0 if never.
    pub used_at_ns: i64,
}

impl GoldenStatus {
    pub fn of(engine: &Engine, template: Option<TemplateId>) -> Self {
        let ready = golden_budget::list_below(&engine.paths.golden_root());
        let total_bytes = ready.iter().map(|golden| golden.bytes).sum();
        let making = engine.goldens.being_made().into_iter();
        let making = making.filter(|path| ready.iter().all(|golden| golden.path != *path));
        let making: Vec<_> = making.filter_map(|path| state(&path, false, 0, 0)).collect();
        let ready = ready.iter().filter_map(|golden| {
            let used = golden.used_at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let used_at_ns = i64::try_from(used.as_nanos()).unwrap_or(i64::MAX);
            state(&golden.path, true, golden.bytes, used_at_ns)
        });
        let mut goldens: Vec<_> = ready.chain(making).collect();
        goldens.retain(|golden| template.is_none_or(|template| golden.template == template));
        goldens.sort_by_key(|golden| std::cmp::Reverse(golden.used_at_ns));
        Self { goldens, total_bytes, budget_bytes: engine.golden_budget_mib << 20 }
    }
}

/// None for what is called as no golden snapshot is.
fn state(path: &std::path::Path, ready: bool, allocated_bytes: u64, used_at_ns: i64) -> Option<GoldenState> {
    let key = GoldenKey::from_str(path.file_name()?.to_str()?).ok()?;
    let template = TemplateId::from_str(path.parent()?.file_name()?.to_str()?).ok()?;
    Some(GoldenState { template, key, ready, allocated_bytes, used_at_ns })
}
