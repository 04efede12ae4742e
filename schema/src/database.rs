//! How databases are opened and how transactions begin.

use std::time::Duration;

use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};

use crate::spent;

/// How long a writer waits for another before SQLite calls the database locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens `sqlite://…` (the file is made if there is none) or `postgres://…`.
pub async fn connect(url: &str) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(if url.starts_with("sqlite") { 8 } else { 32 })
        .acquire_timeout(Duration::from_secs(10))
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .create_if_missing(true)
                .busy_timeout(BUSY_TIMEOUT)
                .foreign_keys(true)
                .pragma("journal_mode", "WAL")
                // Safe with WAL against a killed process; a power cut may cost the last commits, never consistency.
                .pragma("synchronous", "NORMAL")
        });
    let mut db = Database::connect(options).await?;
    db.set_metric_callback(|info| spent::statement(info.elapsed));
    Ok(db)
}

/// Begins a transaction that will write.
///
/// On SQLite it takes the write lock at once: one that reads first and then wants to write fails with "database is
/// locked" whenever another was faster, whatever the busy timeout.
pub(crate) async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    db.begin_with_options(TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    })
    .await
}

/// Whether the statement failed because the row is already there.
pub(crate) fn is_duplicate(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(sea_orm::SqlErr::UniqueConstraintViolation(_)))
}
