//! Templates.

use sea_orm_migration::{prelude::*, schema::*};

use crate::m20261101_000001_accounts::Teams;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
pub enum Templates {
    Table,
    Id,
    TeamId,
    Name,
    Kind,
    Vcpus,
    MemoryMib,
    DiskMib,
    DefaultUser,
    Env,
    CreatedAt,
    DeletedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(Templates::Table)
                    .col(uuid(Templates::Id).primary_key())
                    .col(uuid(Templates::TeamId))
                    .col(string_len(Templates::Name, 63))
                    .col(string_len(Templates::Kind, 16))
                    .col(integer(Templates::Vcpus))
                    .col(integer(Templates::MemoryMib))
                    .col(integer(Templates::DiskMib))
                    .col(string(Templates::DefaultUser))
                    .col(json_binary(Templates::Env))
                    .col(timestamp_with_time_zone(Templates::CreatedAt))
                    .col(timestamp_with_time_zone_null(Templates::DeletedAt))
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_templates_team")
                            .from(Templates::Table, Templates::TeamId)
                            .to(Teams::Table, Teams::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .to_owned(),
            )
            .await?;
        // A name is taken only while its template is there.
        manager
            .create_index(
                Index::create()
                    .name("uq_templates_team_name")
                    .table(Templates::Table)
                    .col(Templates::TeamId)
                    .col(Templates::Name)
                    .unique()
                    .cond_where(Expr::col(Templates::DeletedAt).is_null())
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Templates::Table).to_owned()).await
    }
}
