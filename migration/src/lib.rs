//! The schema of the database, step by step, for SQLite and Postgres alike.
//!
//! One file a step; each goes up and down. A step that has been released is never changed.

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

mod m20261101_000001_accounts;
mod m20261101_000002_api_keys;
mod m20261101_000003_hosts;
mod m20261101_000004_templates;
mod m20261101_000005_capsules;
mod m20261101_000006_idempotency_keys;
mod m20261101_000007_platform;
mod m20261101_000008_snapshots_and_forks;
mod m20261101_000009_public_ports;
mod m20261101_000010_built_in_templates;

/// All steps, in order.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261101_000001_accounts::Migration),
            Box::new(m20261101_000002_api_keys::Migration),
            Box::new(m20261101_000003_hosts::Migration),
            Box::new(m20261101_000004_templates::Migration),
            Box::new(m20261101_000005_capsules::Migration),
            Box::new(m20261101_000006_idempotency_keys::Migration),
            Box::new(m20261101_000007_platform::Migration),
            Box::new(m20261101_000008_snapshots_and_forks::Migration),
            Box::new(m20261101_000009_public_ports::Migration),
            Box::new(m20261101_000010_built_in_templates::Migration),
        ]
    }
}
