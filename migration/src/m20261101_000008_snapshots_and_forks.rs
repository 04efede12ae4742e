//! Templates that are snapshots on a host, and capsules that are copies of others.

use sea_orm_migration::{prelude::*, schema::*, sea_orm::TransactionTrait};

use crate::{
    m20261101_000004_templates::Templates as T, m20261101_000005_capsules::Capsules as C,
    m20261101_000006_idempotency_keys::IdempotencyKeys as K,
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
enum Templates {
    State,
    HostId,
    SourceCapsuleId,
    SizeBytes,
}

#[derive(DeriveIden)]
enum Capsules {
    ParentId,
    ForkId,
}

#[derive(DeriveIden)]
enum IdempotencyKeys {
    TemplateId,
}

const NAMES: &str = "uq_templates_team_name";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // As a whole or not at all, and by one connection: SQLite lets another one go on with the index that it knew.
        let transaction = manager.get_connection().begin().await?;
        up(&SchemaManager::new(&transaction)).await?;
        transaction.commit().await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let transaction = manager.get_connection().begin().await?;
        down(&SchemaManager::new(&transaction)).await?;
        transaction.commit().await
    }
}

async fn up(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    // The default is for the rows that are there already; whoever writes a new one says its state.
    add(manager, T::Table, string_len(Templates::State, 16).default("ready")).await?;
    add(manager, T::Table, uuid_null(Templates::HostId)).await?;
    add(manager, T::Table, uuid_null(Templates::SourceCapsuleId)).await?;
    add(manager, T::Table, big_integer_null(Templates::SizeBytes)).await?;
    add(manager, C::Table, uuid_null(Capsules::ParentId)).await?;
    add(manager, C::Table, uuid_null(Capsules::ForkId)).await?;
    add(manager, K::Table, uuid_null(IdempotencyKeys::TemplateId)).await?;
    // A name is taken by the one that is there and by the one that is about to take its place.
    manager.drop_index(Index::drop().name(NAMES).table(T::Table).to_owned()).await?;
    let mut names = Index::create();
    names.name(NAMES).table(T::Table).col(T::TeamId).col(T::Name).col(Templates::State).unique();
    manager.create_index(names.cond_where(Expr::col(T::DeletedAt).is_null()).to_owned()).await?;
    // Copies of one moment belong together.
    manager
        .create_index(
            Index::create()
                .name("idx_capsules_fork")
                .table(C::Table)
                .col(Capsules::ForkId)
                .cond_where(Expr::col(Capsules::ForkId).is_not_null())
                .to_owned(),
        )
        .await
}

async fn down(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager.drop_index(Index::drop().name("idx_capsules_fork").table(C::Table).to_owned()).await?;
    manager.drop_index(Index::drop().name(NAMES).table(T::Table).to_owned()).await?;
    // Before this step there were only whole ones.
    manager
        .execute(
            Query::delete()
                .from_table(T::Table)
                .and_where(Expr::col(Templates::State).ne("ready"))
                .to_owned(),
        )
        .await?;
    let mut names = Index::create();
    names.name(NAMES).table(T::Table).col(T::TeamId).col(T::Name).unique();
    manager.create_index(names.cond_where(Expr::col(T::DeletedAt).is_null()).to_owned()).await?;
    remove(manager, K::Table, IdempotencyKeys::TemplateId).await?;
    remove(manager, C::Table, Capsules::ForkId).await?;
    remove(manager, C::Table, Capsules::ParentId).await?;
    remove(manager, T::Table, Templates::SizeBytes).await?;
    remove(manager, T::Table, Templates::SourceCapsuleId).await?;
    remove(manager, T::Table, Templates::HostId).await?;
    remove(manager, T::Table, Templates::State).await
}

/// One column at a time: SQLite takes no more in one statement.
async fn add(
    manager: &SchemaManager<'_>,
    table: impl IntoTableRef,
    column: impl IntoColumnDef,
) -> Result<(), DbErr> {
    manager.alter_table(Table::alter().table(table).add_column(column).to_owned()).await
}

async fn remove(
    manager: &SchemaManager<'_>,
    table: impl IntoTableRef,
    column: impl IntoIden,
) -> Result<(), DbErr> {
    manager.alter_table(Table::alter().table(table).drop_column(column).to_owned()).await
}
