//! Teams, people, and who belongs where.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[derive(DeriveIden)]
pub enum Teams {
    Table,
    Id,
    Name,
    Slug,
    CreatedAt,
    DeletedAt,
}

#[derive(DeriveIden)]
pub enum Users {
    Table,
    Id,
    Name,
    Email,
    Status,
    IsAdmin,
    CreatedAt,
}

#[derive(DeriveIden)]
enum UsersTeams {
    Table,
    UserId,
    TeamId,
    Role,
    CreatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(Teams::Table)
                    .col(uuid(Teams::Id).primary_key())
                    .col(string_len(Teams::Name, 64))
                    .col(string_len(Teams::Slug, 13).unique_key())
                    .col(timestamp_with_time_zone(Teams::CreatedAt))
                    .col(timestamp_with_time_zone_null(Teams::DeletedAt))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(Users::Table)
                    .col(uuid(Users::Id).primary_key())
                    .col(string(Users::Name))
                    .col(string(Users::Email).unique_key())
                    .col(string_len(Users::Status, 16))
                    .col(boolean(Users::IsAdmin))
                    .col(timestamp_with_time_zone(Users::CreatedAt))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(UsersTeams::Table)
                    .col(uuid(UsersTeams::UserId))
                    .col(uuid(UsersTeams::TeamId))
                    .col(string_len(UsersTeams::Role, 16))
                    .col(timestamp_with_time_zone(UsersTeams::CreatedAt))
                    .primary_key(Index::create().col(UsersTeams::UserId).col(UsersTeams::TeamId))
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_users_teams_user")
                            .from(UsersTeams::Table, UsersTeams::UserId)
                            .to(Users::Table, Users::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .foreign_key(
                        ForeignKey::create()
                            .name("fk_users_teams_team")
                            .from(UsersTeams::Table, UsersTeams::TeamId)
                            .to(Teams::Table, Teams::Id)
                            .on_delete(ForeignKeyAction::Cascade),
                    )
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("idx_users_teams_team")
                    .table(UsersTeams::Table)
                    .col(UsersTeams::TeamId)
                    .to_owned(),
            )
            .await?;
        // Exactly one owner at any time: never two.
        manager
            .create_index(
                Index::create()
                    .name("uq_users_teams_owner")
                    .table(UsersTeams::Table)
                    .col(UsersTeams::TeamId)
                    .unique()
                    .cond_where(Expr::col(UsersTeams::Role).eq("owner"))
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(UsersTeams::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Users::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Teams::Table).to_owned()).await
    }
}
