//! The product: what clients can ask for, and the rules by which it is carried out.
//!
//! One folder per domain, each with its GraphQL types, queries, mutations, subscriptions and the service behind them.
//! A request enters through [`schema`]; [`access`] says who asks; the domains decide; [`host`] carries it to the
//! machines; [`jobs`] keeps the database true to them.

pub mod access;
mod account;
pub mod bootstrap;
mod bus;
mod capsule;
mod config;
pub mod database;
mod document;
mod error;
mod file;
mod host;
mod idempotency;
pub mod jobs;
mod key;
mod loader;
mod metrics;
mod node;
mod page;
mod port;
mod process;
mod scalar;
mod secret;
mod services;
mod signing;
mod spent;
mod team;
mod template;

use std::sync::Arc;

use async_graphql::{MergedObject, MergedSubscription, SDLExportOptions, Schema, SchemaBuilder};

pub use crate::{
    config::SchemaConfig,
    error::{Code, Error, Refusal},
    file::{FileEntry, FileKind, transfer},
    host::AuthorityError,
    port::gateway,
    process::HeldOutput,
    services::{Services, StartError},
    signing::UrlKeyError,
    spent::Spent,
};

#[derive(MergedObject, Default)]
pub struct Query(node::NodeQuery, account::ViewerQuery, capsule::CapsuleQuery, template::TemplateQuery);

#[derive(MergedObject, Default)]
pub struct Mutation(
    capsule::CapsuleMutation,
    template::TemplateMutation,
    process::ProcessMutation,
    process::PtyMutation,
    process::NewCapsuleMutation,
    file::FileMutation,
    port::PortMutation,
    host::HostMutation,
);

#[derive(MergedSubscription, Default)]
pub struct Subscription(
    process::ProcessSubscription,
    capsule::CapsuleSubscription,
    file::FileSubscription,
    metrics::MetricsSubscription,
);

/// The executable schema.
pub type WrennSchema = Schema<Query, Mutation, Subscription>;

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    Schema::build(Query::default(), Mutation::default(), Subscription::default())
        .register_output_type::<node::Node>()
        .extension(error::ErrorCodes)
}

/// The schema on top of its services.
#[must_use]
pub fn schema(services: Arc<Services>) -> WrennSchema {
    let mut builder =
        builder().limit_depth(services.config.depth_limit).limit_complexity(services.config.complexity_limit);
    if !services.config.introspection {
        builder = builder.disable_introspection().disable_suggestions();
    }
    builder.data(services).finish()
}

/// The schema in its definition language, as it is checked in under `codegen/schema.graphql`.
#[must_use]
pub fn sdl() -> String {
    builder()
        .finish()
        .sdl_with_options(SDLExportOptions::new().sorted_fields().sorted_arguments().sorted_enum_items())
}
