//! Capsules.

use sea_orm_migration::{prelude::*, schema::*};

use crate::{
    m20261101_000001_accounts::Teams, m20261101_000002_api_keys::ApiKeys, m20261101_000003_hosts::Hosts,
    m20261101_000004_templates::Templates,
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
pub enum Capsules {
    Table,
    Id,
    TeamId,
    TemplateId,
    HostId,
    Name,
    State,
    Generation,
    CauseCode,
    CauseMessage,
    Vcpus,
    MemoryMib,
    DiskMib,
    TimeoutSec,
    Labels,
    CreatedBy,
    CreatedAt,
    UpdatedAt,
    StartedAt,
    LastActiveAt,
    OperationUntil,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(Capsules::Table)
                    .col(uuid(Capsules::Id).primary_key())
                    .col(uuid(Capsules::TeamId))
                    .col(uuid(Capsules::TemplateId))
                    .col(uuid_null(Capsules::HostId))
                    .col(string_len_null(Capsules::Name, 63))
                    .col(string_len(Capsules::State, 16))
                    .col(big_integer(Capsules::Generation))
                    .col(string_null(Capsules::CauseCode))
                    .col(text_null(Capsules::CauseMessage))
                    .col(integer(Capsules::Vcpus))
                    .col(integer(Capsules::MemoryMib))
                    .col(integer(Capsules::DiskMib))
                    .col(integer(Capsules::TimeoutSec))
                    .col(json_binary(Capsules::Labels))
                    .col(uuid_null(Capsules::CreatedBy))
                    .col(timestamp_with_time_zone(Capsules::CreatedAt))
                    .col(timestamp_with_time_zone(Capsules::UpdatedAt))
                    .col(timestamp_with_time_zone_null(Capsules::StartedAt))
                    .col(timestamp_with_time_zone_null(Capsules::LastActiveAt))
                    .col(timestamp_with_time_zone_null(Capsules::OperationUntil))
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_capsules_team")
                            .from(Capsules::Table, Capsules::TeamId)
                            .to(Teams::Table, Teams::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_capsules_template")
                            .from(Capsules::Table, Capsules::TemplateId)
                            .to(Templates::Table, Templates::Id)
                            .on_delete(ForeignKeyAction::Restrict),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_capsules_host")
                            .from(Capsules::Table, Capsules::HostId)
                            .to(Hosts::Table, Hosts::Id)
                            .on_delete(ForeignKeyAction::Restrict),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_capsules_creator")
                            .from(Capsules::Table, Capsules::CreatedBy)
                            .to(ApiKeys::Table, ApiKeys::Id)
                            .on_delete(ForeignKeyAction::SetNull),
                    )
                    .to_owned(),
            )
            .await?;
        // The order in which a team's capsules are listed.
        manager
            .create_index(
                Index::create()
                    .name("idx_capsules_team_order")
                    .table(Capsules::Table)
                    .col(Capsules::TeamId)
                    .col(Capsules::CreatedAt)
                    .col(Capsules::Id)
                    .to_owned(),
            )
            .await?;
        // What a host is asked about; capsules that are gone pile up and stay out of it.
        manager
            .create_index(
                Index::create()
                    .name("idx_capsules_host_present")
                    .table(Capsules::Table)
                    .col(Capsules::HostId)
                    .cond_where(Expr::col(Capsules::State).ne("stopped"))
                    .to_owned(),
            )
            .await?;
        // Operations under way, few at any time.
        manager
            .create_index(
                Index::create()
                    .name("idx_capsules_operation")
                    .table(Capsules::Table)
                    .col(Capsules::OperationUntil)
                    .cond_where(Expr::col(Capsules::OperationUntil).is_not_null())
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Capsules::Table).to_owned()).await
    }
}
