//! Takes away from hosts what they still have of templates that are gone: deleted, overwritten, or never finished.
//!
//! A host that is away is asked again when it is back: until it has said that nothing is left, the row says where.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect, QueryTrait};
use tokio_util::sync::CancellationToken;
use wrenn_entities::{
    host::{self, HostStatus},
    template,
};
use wrenn_proto::agent::v1 as agent;

use super::Job;
use crate::{
    Error, Services,
    access::RequestId,
    host::{answer, requested},
    template::lifecycle::{abandoned, files_gone, with_files_left, withdraw},
};

const DELETE: Duration = Duration::from_secs(60);
/// So many templates are removed at a time.
const AT_ONCE: usize = 4;

pub(super) struct TemplateFiles {
    services: Arc<Services>,
}

impl TemplateFiles {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { services }
    }

    async fn remove(&self, row: &template::Model) -> Result<(), Error> {
        let Some(host) = row.host_id else { return Ok(()) };
        let mut client = self.services.hosts.get(host).await?;
        let message = agent::DeleteTemplateRequest { template_id: row.id.to_string() };
        let request = requested(message, &RequestId(format!("delete-{}", row.id)));
        answer("DeleteTemplate", DELETE, client.delete_template(request)).await?;
        files_gone(&self.services.db, row).await?;
        tracing::info!(template = %row.id, %host, "a template's files are gone");
        Ok(())
    }
}

#[async_trait::async_trait]
impl Job for TemplateFiles {
    fn name(&self) -> &'static str {
        "template-files"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn woken(&self) {
        self.services.templates_changed.notified().await;
    }

    async fn activate(&self, stop: &CancellationToken) -> Result<(), Error> {
        for row in abandoned(&self.services.db).await? {
            tracing::warn!(template = %row.id, "whoever was making a template is gone; it is taken back");
            withdraw(&self.services, row.id).await?;
        }
        let online = host::Entity::find()
            .select_only()
            .column(host::Column::Id)
            .filter(host::Column::Status.eq(HostStatus::Online))
            .into_query();
        let left = with_files_left()
            .filter(template::Column::HostId.in_subquery(online))
            .all(&self.services.db)
            .await?;
        let removing = stream::iter(left)
            .map(|row| async move {
                let removed = self.remove(&row).await;
                (row, removed)
            })
            .buffer_unordered(AT_ONCE);
        let mut removing = std::pin::pin!(removing.take_until(stop.cancelled()));
        let mut first = Ok(());
        while let Some((row, removed)) = removing.next().await {
            if let Err(error) = removed {
                tracing::debug!(template = %row.id, error = %error.chain(), "a template's files stay for now");
                first = first.and(Err(error));
            }
        }
        first
    }
}
