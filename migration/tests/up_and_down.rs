//! Every step goes up, down and up again, on both databases, and ends with the same tables.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement},
};
use wrenn_migration::Migrator;

const TABLES: [&str; 10] = [
    "api_keys",
    "capsules",
    "host_credentials",
    "hosts",
    "idempotency_keys",
    "public_ports",
    "teams",
    "templates",
    "users",
    "users_teams",
];

async fn present(db: &DatabaseConnection) -> Vec<&'static str> {
    let manager = SchemaManager::new(db);
    let mut found = Vec::new();
    for table in TABLES {
        if manager.has_table(table).await.expect("the catalogue answers") {
            found.push(table);
        }
    }
    found
}

async fn count(db: &DatabaseConnection, table: &str) -> i64 {
    db.query_one_raw(Statement::from_string(
        db.get_database_backend(),
        format!("SELECT COUNT(*) AS n FROM {table}"),
    ))
    .await
    .expect("counts")
    .expect("one row")
    .try_get("", "n")
    .expect("a number")
}

async fn up_down_up(db: &DatabaseConnection) {
    let steps = Migrator::migrations().len();
    Migrator::up(db, None).await.expect("goes up");
    assert_eq!(present(db).await, TABLES);
    assert_eq!(count(db, "teams").await, 1, "the platform's team is seeded");
    assert_eq!(count(db, "templates").await, 3, "the built-in templates are seeded");

    for step in 0..steps {
        Migrator::down(db, Some(1))
            .await
            .unwrap_or_else(|error| panic!("step {step} from the end goes down: {error}"));
    }
    assert!(present(db).await.is_empty(), "nothing is left");

    Migrator::up(db, None).await.expect("goes up again");
    assert_eq!(present(db).await, TABLES);
    Migrator::up(db, None).await.expect("going up once more changes nothing");
    assert_eq!(count(db, "templates").await, 3);

    // The platform's administrators may have called one of their own like a template that comes later.
    Migrator::down(db, Some(1)).await.expect("goes down");
    db.execute_unprepared("UPDATE templates SET name = 'python'").await.expect("renames");
    Migrator::up(db, None).await.expect("goes up beside it");
    assert_eq!(count(db, "templates WHERE name = 'python'").await, 1, "theirs keeps its name");
    assert_eq!(count(db, "templates").await, 2);
}

#[tokio::test]
async fn sqlite() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite://{}?mode=rwc", directory.path().join("wrenn.db").display());
    let db = Database::connect(url).await.expect("opens");
    up_down_up(&db).await;
}

/// Wants an empty database of its own each time, so it makes one next to the one that is given.
#[tokio::test]
async fn postgres() {
    let url = std::env::var("WRENN_TEST_POSTGRES_URL").expect(
        "NOT TESTED ON POSTGRES: set WRENN_TEST_POSTGRES_URL=postgres://user@host/database (`make test` does), \
         or run the test named `sqlite` alone",
    );
    let name = format!("wrenn_migration_{}", uuid::Uuid::now_v7().simple());
    let server = Database::connect(&url).await.expect("reaches the server");
    server.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("makes a database");
    let (base, _) = url.rsplit_once('/').expect("a URL with a database name");
    let db = Database::connect(format!("{base}/{name}")).await.expect("reaches the new database");
    up_down_up(&db).await;
    db.close().await.expect("closes");
    server.execute_unprepared(&format!("DROP DATABASE {name}")).await.expect("removes the database");
}
