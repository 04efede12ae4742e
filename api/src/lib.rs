//! The control plane's process: configuration, HTTP server, GraphQL over HTTP and WebSocket, and the start and
//! stop of everything that runs beside requests. The product itself is `wrenn-schema`.
//!
//! ```no_run
//! # async fn run(my_extension: impl wrenn_api::Extension) -> Result<(), Box<dyn std::error::Error>> {
//! let config = wrenn_api::Config::load()?;
//! let server = wrenn_api::Server::builder().extension(my_extension).start(config).await?;
//! tokio::signal::ctrl_c().await?;
//! server.stop().await;
//! # Ok(())
//! # }
//! ```

mod bootstrap;
pub mod config;
mod credentials;
mod cutoff;
pub mod database;
mod extension;
pub mod logging;
mod origin;
mod proxy;
mod request_id;
mod server;
pub mod ws;

pub use bootstrap::{Bootstrap, BootstrapError, Bootstrapped};
pub use config::{Config, ConfigError};
pub use extension::{Extension, ExtensionError, Worker};
pub use origin::{NotAnOrigin, Origin};
pub use proxy::{Domain, NotADomain};
pub use server::{Server, ServerBuilder, StartError};
