//! How hosts come to be, and how their agents stay known.

use std::net::SocketAddr;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, Set,
};
use secrecy::{ExposeSecret, SecretString};
use wrenn_entities::{
    HostId,
    host::{self, HostStatus},
    host_credential::{self, CredentialKind},
    id::TypedId,
    time::now,
};

use super::{Host, credential};
use crate::{
    Error, Services,
    access::{Caller, HostAgent, PlatformAdmin, caller, services},
    capsule::rules,
    database,
};

#[derive(InputObject)]
pub struct CreateHostInput {
    name: String,
}

#[derive(SimpleObject)]
pub struct CreateHostPayload {
    host: Host,
    /// For `wrenn-agent --register`: good for one registration.
    token: String,
    expires_at: DateTime<Utc>,
}

/// What a host has, as its agent sees it.
#[derive(InputObject)]
pub struct HostSpecsInput {
    arch: String,
    cpus: i32,
    memory_mib: i32,
    memory_available_mib: i32,
    disk_mib: i32,
    disk_available_mib: i32,
    vmm: String,
    disk_store: String,
    agent_version: String,
}

#[derive(InputObject)]
pub struct RegisterHostInput {
    token: String,
    /// A certificate request whose key stays on the host.
    csr_pem: String,
    /// Where the agent listens, `ip:port`.
    address: String,
    specs: HostSpecsInput,
}

#[derive(InputObject)]
pub struct RefreshHostCredentialsInput {
    refresh_token: String,
    csr_pem: String,
}

#[derive(InputObject)]
pub struct HostHeartbeatInput {
    specs: HostSpecsInput,
}

#[derive(SimpleObject)]
pub struct HostCredentialsPayload {
    host_id: ID,
    certificate_pem: String,
    ca_pem: String,
    /// For `Authorization: Bearer`.
    token: String,
    token_expires_at: DateTime<Utc>,
    refresh_token: String,
}

#[derive(SimpleObject)]
pub struct HostHeartbeatPayload {
    host: Host,
}

impl HostSpecsInput {
    fn check(&self) -> Result<(), Error> {
        for (field, value, least) in [
            ("cpus", self.cpus, 1),
            ("memoryMib", self.memory_mib, 1),
            ("memoryAvailableMib", self.memory_available_mib, 0),
            ("diskMib", self.disk_mib, 1),
            ("diskAvailableMib", self.disk_available_mib, 0),
        ] {
            if value < least {
                return Err(Error::invalid(field, format!("`{field}` is at least {least}, not {value}")));
            }
        }
        Ok(())
    }

    fn write_to(self, row: &mut host::ActiveModel) {
        row.arch = Set(self.arch);
        row.cpus = Set(self.cpus);
        row.memory_mib = Set(self.memory_mib);
        row.memory_available_mib = Set(self.memory_available_mib);
        row.disk_mib = Set(self.disk_mib);
        row.disk_available_mib = Set(self.disk_available_mib);
        row.vmm = Set(self.vmm);
        row.disk_store = Set(self.disk_store);
        row.agent_version = Set(self.agent_version);
        row.status = Set(HostStatus::Online);
        row.last_heartbeat_at = Set(Some(now()));
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, Error> {
    text.parse::<SocketAddr>()
        .ok()
        .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
        .ok_or_else(|| {
            Error::invalid("address", format!("`{text}` is no address that can be reached as `ip:port`"))
        })
}

async fn find(db: &impl ConnectionTrait, id: HostId) -> Result<host::Model, Error> {
    host::Entity::find_by_id(id)
        .one(db)
        .await?
        .ok_or_else(|| Error::not_found(format!("there is no host {id}")))
}

#[derive(Default)]
pub struct HostMutation;

#[Object]
impl HostMutation {
    /// Makes a host and a token with which an agent becomes it. For a host that nobody has registered as yet, a new
    /// token takes the place of the old one.
    #[graphql(guard = "PlatformAdmin")]
    async fn create_host(
        &self,
        ctx: &Context<'_>,
        input: CreateHostInput,
    ) -> Result<CreateHostPayload, Error> {
        rules::name("name", &input.name)?;
        let transaction = database::begin(&services(ctx)?.db).await?;
        let existing =
            host::Entity::find().filter(host::Column::Name.eq(&input.name)).one(&transaction).await?;
        let host = match existing {
            Some(host) if host.status == HostStatus::Pending => {
                host_credential::Entity::delete_many()
                    .filter(host_credential::Column::HostId.eq(host.id))
                    .exec(&transaction)
                    .await?;
                host
            }
            Some(_) => {
                return Err(
                    Error::conflict(format!("there is a host `{}` already", input.name)).with_field("name")
                );
            }
            None => pending(input.name).insert(&transaction).await?,
        };
        let issued = credential::issue(&transaction, host.id, CredentialKind::Registration, 0).await?;
        transaction.commit().await?;
        Ok(CreateHostPayload {
            host: Host(host),
            token: issued.secret.expose_secret().to_owned(),
            expires_at: issued.expires_at,
        })
    }

    /// Makes the agent that shows a registration token the host the token was made for.
    async fn register_host(
        &self,
        ctx: &Context<'_>,
        input: RegisterHostInput,
    ) -> Result<HostCredentialsPayload, Error> {
        let services = services(ctx)?;
        input.specs.check()?;
        let address = parse_address(&input.address)?;
        let transaction = database::begin(&services.db).await?;
        let token = SecretString::from(input.token);
        let Some(token) = credential::redeem(&transaction, &token, CredentialKind::Registration).await?
        else {
            tracing::warn!(%address, "a registration token was refused");
            return Err(Error::unauthenticated("the registration token is unknown, was used or has expired"));
        };
        let certificate_pem = services.authority.sign_host(token.host_id, address.ip(), &input.csr_pem)?;
        let used = host_credential::Entity::delete_many()
            .filter(host_credential::Column::Digest.eq(token.digest))
            .exec(&transaction)
            .await?;
        if used.rows_affected == 0 {
            return Err(Error::unauthenticated("the registration token was used a moment ago"));
        }
        let mut row = find(&transaction, token.host_id).await?.into_active_model();
        row.address = Set(Some(address.to_string()));
        input.specs.write_to(&mut row);
        row.update(&transaction).await?;
        let payload = new_pair(services, &transaction, token.host_id, certificate_pem).await?;
        transaction.commit().await?;
        services.hosts.set_address(token.host_id, &address.to_string())?;
        services.hosts_changed.notify_one();
        tracing::info!(host = %token.host_id, %address, "a host registered");
        Ok(payload)
    }

    /// New tokens and a new certificate. The old ones stand until the new ones are used.
    async fn refresh_host_credentials(
        &self,
        ctx: &Context<'_>,
        input: RefreshHostCredentialsInput,
    ) -> Result<HostCredentialsPayload, Error> {
        let services = services(ctx)?;
        let transaction = database::begin(&services.db).await?;
        let token = SecretString::from(input.refresh_token);
        let Some(token) = credential::redeem(&transaction, &token, CredentialKind::Refresh).await? else {
            tracing::warn!("a host's refresh token was refused");
            return Err(Error::unauthenticated("the refresh token is unknown, was replaced or has expired"));
        };
        let row = find(&transaction, token.host_id).await?;
        let address = parse_address(row.address.as_deref().unwrap_or_default())?;
        let certificate_pem = services.authority.sign_host(token.host_id, address.ip(), &input.csr_pem)?;
        let payload = new_pair(services, &transaction, token.host_id, certificate_pem).await?;
        transaction.commit().await?;
        Ok(payload)
    }

    /// Says that the host is there, and what it has left. Expected every 15 seconds.
    #[graphql(guard = "HostAgent")]
    async fn host_heartbeat(
        &self,
        ctx: &Context<'_>,
        input: HostHeartbeatInput,
    ) -> Result<HostHeartbeatPayload, Error> {
        let Caller::Host(id) = caller(ctx)? else { return Err(Error::Context("host")) };
        let services = services(ctx)?;
        input.specs.check()?;
        let row = find(&services.db, *id).await?;
        let was = row.status;
        let mut row = row.into_active_model();
        input.specs.write_to(&mut row);
        let row = row.update(&services.db).await?;
        if was != HostStatus::Online {
            tracing::info!(host = %id, "a host is back");
            services.hosts_changed.notify_one();
        }
        Ok(HostHeartbeatPayload { host: Host(row) })
    }
}

fn pending(name: String) -> host::ActiveModel {
    host::ActiveModel {
        id: Set(HostId::generate()),
        name: Set(name),
        status: Set(HostStatus::Pending),
        address: Set(None),
        arch: Set(String::new()),
        cpus: Set(0),
        memory_mib: Set(0),
        memory_available_mib: Set(0),
        disk_mib: Set(0),
        disk_available_mib: Set(0),
        vmm: Set(String::new()),
        disk_store: Set(String::new()),
        agent_version: Set(String::new()),
        last_heartbeat_at: Set(None),
        created_at: Set(now()),
    }
}

async fn new_pair(
    services: &Services,
    db: &impl ConnectionTrait,
    host_id: HostId,
    certificate_pem: String,
) -> Result<HostCredentialsPayload, Error> {
    let number = credential::latest_issue(db, host_id).await? + 1;
    let access = credential::issue(db, host_id, CredentialKind::Access, number).await?;
    let refresh = credential::issue(db, host_id, CredentialKind::Refresh, number).await?;
    Ok(HostCredentialsPayload {
        host_id: host_id.to_string().into(),
        certificate_pem,
        ca_pem: services.authority.ca_pem().to_owned(),
        token: access.secret.expose_secret().to_owned(),
        token_expires_at: access.expires_at,
        refresh_token: refresh.secret.expose_secret().to_owned(),
    })
}
