//! The schema against a real database and real connections: mutual TLS and gRPC to a host agent whose capsules are
//! played, everything else as in production.

mod access;
mod agent;
mod capsules;
mod files;
mod forks;
mod gauges;
mod hosts;
mod idempotency;
mod jobs;
mod paging;
mod placement;
mod ports;
mod processes;
#[expect(dead_code, reason = "the tests of the bus itself stop it and let it go on")]
#[path = "../redis_server/mod.rs"]
mod redis_server;
mod replicas;
mod sdl;
mod snapshots;
mod watching;
mod world;

/// Runs each test on SQLite and on the Postgres that `WRENN_TEST_POSTGRES_URL` names.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                #[tokio::test]
                async fn sqlite() {
                    let world = crate::world::World::on_sqlite().await;
                    super::$name(&world).await;
                    world.end().await;
                }

                #[tokio::test]
                async fn postgres() {
                    let world = crate::world::World::on_postgres().await;
                    super::$name(&world).await;
                    world.end().await;
                }
            }
        )*
    };
}
pub(crate) use on_both_databases;
