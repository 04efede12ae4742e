//! What the platform itself provides: its team and the built-in `minimal` template, both with the all-zeros id.

use chrono::{SubsecRound, Utc};
use sea_orm_migration::prelude::*;
use uuid::Uuid;

use crate::{m20261101_000001_accounts::Teams, m20261101_000004_templates::Templates};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let now = Utc::now().trunc_subsecs(6);
        manager
            .execute(
                Query::insert()
                    .into_table(Teams::Table)
                    .columns([Teams::Id, Teams::Name, Teams::Slug, Teams::CreatedAt])
                    .values_panic([Uuid::nil().into(), "Platform".into(), "000000-000000".into(), now.into()])
                    .to_owned(),
            )
            .await?;
        manager
            .execute(
                Query::insert()
                    .into_table(Templates::Table)
                    .columns([
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
                    ])
                    .values_panic([
                        Uuid::nil().into(),
                        Uuid::nil().into(),
                        "minimal".into(),
                        "image".into(),
                        1.into(),
                        256.into(),
                        1024.into(),
                        "root".into(),
                        serde_json::json!([]).into(),
                        now.into(),
                    ])
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .execute(
                Query::delete()
                    .from_table(Templates::Table)
                    .and_where(Expr::col(Templates::Id).eq(Uuid::nil()))
                    .to_owned(),
            )
            .await?;
        manager
            .execute(
                Query::delete()
                    .from_table(Teams::Table)
                    .and_where(Expr::col(Teams::Id).eq(Uuid::nil()))
                    .to_owned(),
            )
            .await
    }
}
