//! Keys under which clients repeat requests.

use sea_orm_migration::{prelude::*, schema::*};

use crate::{m20261101_000001_accounts::Teams, m20261101_000005_capsules::Capsules};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
pub enum IdempotencyKeys {
    Table,
    TeamId,
    Operation,
    Key,
    InputDigest,
    CapsuleId,
    CreatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(IdempotencyKeys::Table)
                    .col(uuid(IdempotencyKeys::TeamId))
                    .col(string_len(IdempotencyKeys::Operation, 64))
                    .col(string_len(IdempotencyKeys::Key, 255))
                    .col(binary_len(IdempotencyKeys::InputDigest, 32))
                    .col(uuid(IdempotencyKeys::CapsuleId))
                    .col(timestamp_with_time_zone(IdempotencyKeys::CreatedAt))
                    .primary_key(
                        Index::create()
                            .col(IdempotencyKeys::TeamId)
                            .col(IdempotencyKeys::Operation)
                            .col(IdempotencyKeys::Key),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_idempotency_keys_team")
                            .from(IdempotencyKeys::Table, IdempotencyKeys::TeamId)
                            .to(Teams::Table, Teams::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_idempotency_keys_capsule")
                            .from(IdempotencyKeys::Table, IdempotencyKeys::CapsuleId)
                            .to(Capsules::Table, Capsules::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("idx_idempotency_keys_capsule")
                    .table(IdempotencyKeys::Table)
                    .col(IdempotencyKeys::CapsuleId)
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(IdempotencyKeys::Table).to_owned()).await
    }
}
