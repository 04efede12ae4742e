//! Ports of capsules that anybody may reach, and capsules that a request wakes.

use sea_orm_migration::{prelude::*, schema::*};

use crate::m20261101_000005_capsules::Capsules as C;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
enum PublicPorts {
    Table,
    CapsuleId,
    Port,
}

#[derive(DeriveIden)]
enum Capsules {
    AutoResume,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .alter_table(
                // The default is for the rows that are there already.
                Table::alter()
                    .table(C::Table)
                    .add_column(boolean(Capsules::AutoResume).default(false))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(PublicPorts::Table)
                    .col(uuid(PublicPorts::CapsuleId))
                    .col(integer(PublicPorts::Port))
                    .primary_key(Index::create().col(PublicPorts::CapsuleId).col(PublicPorts::Port))
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_public_ports_capsule")
                            .from(PublicPorts::Table, PublicPorts::CapsuleId)
                            .to(C::Table, C::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(PublicPorts::Table).to_owned()).await?;
        manager.alter_table(Table::alter().table(C::Table).drop_column(Capsules::AutoResume).to_owned()).await
    }
}
