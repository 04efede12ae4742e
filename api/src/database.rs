//! The database as the process opens it.

use sea_orm::{DatabaseConnection, DbErr};
use sea_orm_migration::MigratorTrait;
use wrenn_migration::Migrator;

/// Connects and brings the schema up to date.
///
/// # Errors
/// The database cannot be reached or a migration fails.
pub async fn open(url: &str) -> Result<DatabaseConnection, DbErr> {
    let db = wrenn_schema::database::connect(url).await?;
    Migrator::up(&db, None).await?;
    Ok(db)
}
