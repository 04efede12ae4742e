//! The built-in templates besides `minimal`. A host has the image of one once `wrenn-rootfs build` made it there.

use chrono::{SubsecRound, Utc};
use sea_orm_migration::prelude::*;
use uuid::Uuid;

use crate::m20261101_000004_templates::Templates;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// The number in the id, which is `wrenn-rootfs`'s too; name, MiB of memory and of disk.
const TEMPLATES: [(u128, &str, i32, i32); 2] =
    [(1, "python", 512, 2048), (2, "code-interpreter", 1024, 4096)];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let now = Utc::now().trunc_subsecs(6);
        let mut rows = Query::insert();
        rows.into_table(Templates::Table).columns([
            Templates::Id,
            Templates::TeamId,
            Templates::Name,
            Templates::Kind,
            Templates::Vcpus,
            Templates::MemoryMib,
            Templates::DiskMib,
            Templates::DefaultUser,
            Templates::Env,
            Templates::CreatedAt,
        ]);
        for (number, name, memory_mib, disk_mib) in TEMPLATES {
            rows.values_panic([
                Uuid::from_u128(number).into(),
                Uuid::nil().into(),
                name.into(),
                "image".into(),
                1.into(),
                memory_mib.into(),
                disk_mib.into(),
                "root".into(),
                serde_json::json!([]).into(),
                now.into(),
            ]);
        }
        // What the platform's administrators called so already keeps its name.
        rows.on_conflict(OnConflict::new().do_nothing().to_owned());
        manager.execute(rows).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .execute(
                Query::delete()
                    .from_table(Templates::Table)
                    .and_where(
                        Expr::col(Templates::Id).is_in(TEMPLATES.map(|(number, ..)| Uuid::from_u128(number))),
                    )
                    .to_owned(),
            )
            .await
    }
}
