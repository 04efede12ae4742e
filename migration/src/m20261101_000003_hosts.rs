//! Hosts and the secrets their agents show.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
pub enum Hosts {
    Table,
    Id,
    Name,
    Status,
    Address,
    Arch,
    Cpus,
    MemoryMib,
    MemoryAvailableMib,
    DiskMib,
    DiskAvailableMib,
    Vmm,
    DiskStore,
    AgentVersion,
    LastHeartbeatAt,
    CreatedAt,
}

#[derive(DeriveIden)]
enum HostCredentials {
    Table,
    Digest,
    HostId,
    Kind,
    Issue,
    CreatedAt,
    ExpiresAt,
    FirstUsedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(Hosts::Table)
                    .col(uuid(Hosts::Id).primary_key())
                    .col(string_len(Hosts::Name, 63).unique_key())
                    .col(string_len(Hosts::Status, 16))
                    .col(string_null(Hosts::Address))
                    .col(string(Hosts::Arch))
                    .col(integer(Hosts::Cpus))
                    .col(integer(Hosts::MemoryMib))
                    .col(integer(Hosts::MemoryAvailableMib))
                    .col(integer(Hosts::DiskMib))
                    .col(integer(Hosts::DiskAvailableMib))
                    .col(string(Hosts::Vmm))
                    .col(string(Hosts::DiskStore))
                    .col(string(Hosts::AgentVersion))
                    .col(timestamp_with_time_zone_null(Hosts::LastHeartbeatAt))
                    .col(timestamp_with_time_zone(Hosts::CreatedAt))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(HostCredentials::Table)
                    .col(binary_len(HostCredentials::Digest, 32).primary_key())
                    .col(uuid(HostCredentials::HostId))
                    .col(string_len(HostCredentials::Kind, 16))
                    .col(big_integer(HostCredentials::Issue))
                    .col(timestamp_with_time_zone(HostCredentials::CreatedAt))
                    .col(timestamp_with_time_zone(HostCredentials::ExpiresAt))
                    .col(timestamp_with_time_zone_null(HostCredentials::FirstUsedAt))
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_host_credentials_host")
                            .from(HostCredentials::Table, HostCredentials::HostId)
                            .to(Hosts::Table, Hosts::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("idx_host_credentials_host")
                    .table(HostCredentials::Table)
                    .col(HostCredentials::HostId)
                    .col(HostCredentials::Issue)
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(HostCredentials::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Hosts::Table).to_owned()).await
    }
}
