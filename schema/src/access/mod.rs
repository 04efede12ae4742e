//! Who asks, and what that lets them do.

mod guard;
mod live;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_graphql::{Context, Request};
use chrono::TimeDelta;
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect, QueryTrait, Select,
};
use secrecy::{ExposeSecret, SecretString};
use wrenn_entities::{
    ApiKeyId, HostId, TeamId, api_key, team,
    time::now,
    user::{self, UserStatus},
};

pub(crate) use self::{
    guard::{HostAgent, Member, PlatformAdmin},
    live::{Standings, until_refused, while_allowed},
};
use crate::{Error, Services, host, key, loader::Loaders, secret};

/// How long an accepted key is taken at its word without asking the database again.
const CACHED: Duration = Duration::from_secs(5);
/// Keys kept in memory at most.
const CACHED_KEYS: usize = 10_000;
/// `lastUsedAt` of a key is not written more often.
const LAST_USED_EVERY: TimeDelta = TimeDelta::seconds(60);

/// What came with a request to say who asks.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// `X-API-Key`, or `apiKey` of a WebSocket's first message.
    pub api_key: Option<SecretString>,
    /// What followed `Authorization: Bearer`: a host's token or an API key.
    pub bearer: Option<SecretString>,
}

/// The id by which a request is found in all logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Caller {
    Anonymous,
    Key(KeyCaller),
    /// A host's agent.
    Host(HostId),
}

/// An API key that was accepted.
#[derive(Clone, Debug)]
pub struct KeyCaller {
    pub id: ApiKeyId,
    pub team_id: TeamId,
    digest: [u8; 32],
}

impl KeyCaller {
    /// Keys of the platform's own team may do what concerns all teams.
    #[must_use]
    pub fn is_platform_admin(&self) -> bool {
        self.team_id == TeamId::PLATFORM
    }
}

/// On whose behalf something is done, and under which request.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// None: somebody who was let in without one, to a port that is public.
    pub key_id: Option<ApiKeyId>,
    pub team_id: TeamId,
    pub request_id: RequestId,
}

impl Actor {
    pub(crate) fn new(caller: &Caller, request_id: &RequestId) -> Result<Self, Error> {
        let key = caller.key()?;
        Ok(Self { key_id: Some(key.id), team_id: key.team_id, request_id: request_id.clone() })
    }

    /// Somebody who was let in to a capsule of the team without a key.
    pub(crate) fn visitor(team_id: TeamId, request_id: &RequestId) -> Self {
        Self { key_id: None, team_id, request_id: request_id.clone() }
    }

    /// The key, where one was shown.
    pub(crate) fn key(&self) -> Result<ApiKeyId, Error> {
        self.key_id.ok_or(Error::Context("API key"))
    }

    pub(crate) fn of(ctx: &Context<'_>) -> Result<Self, Error> {
        Self::new(caller(ctx)?, request_id(ctx)?)
    }
}

pub(crate) fn services<'a>(ctx: &Context<'a>) -> Result<&'a Arc<Services>, Error> {
    ctx.data_opt().ok_or(Error::Context("services"))
}

pub(crate) fn caller<'a>(ctx: &Context<'a>) -> Result<&'a Caller, Error> {
    ctx.data_opt().ok_or(Error::Context("caller"))
}

pub(crate) fn request_id<'a>(ctx: &Context<'a>) -> Result<&'a RequestId, Error> {
    ctx.data_opt().ok_or(Error::Context("request id"))
}

pub(crate) fn key_caller<'a>(ctx: &Context<'a>) -> Result<&'a KeyCaller, Error> {
    caller(ctx)?.key()
}

pub(crate) fn loaders<'a>(ctx: &Context<'a>) -> Result<&'a Arc<Loaders>, Error> {
    ctx.data_opt().ok_or(Error::Context("loaders"))
}

/// Gives an operation what its fields need. To be called for each HTTP request and each operation on a WebSocket.
#[must_use]
pub fn request_data(
    services: &Arc<Services>,
    request: Request,
    caller: Caller,
    request_id: RequestId,
) -> Request {
    let loaders = Arc::new(Loaders::new(services.clone(), request_id.clone()));
    request.data(caller).data(request_id).data(loaders)
}

/// Says who the credentials belong to. None at all is [`Caller::Anonymous`]; wrong ones are `UNAUTHENTICATED`.
pub async fn authenticate(services: &Services, credentials: &Credentials) -> Result<Caller, Error> {
    if let Some(api_key) = &credentials.api_key {
        return authenticate_key(services, api_key).await;
    }
    match &credentials.bearer {
        None => Ok(Caller::Anonymous),
        Some(bearer) if bearer.expose_secret().starts_with(key::PREFIX) => {
            authenticate_key(services, bearer).await
        }
        Some(bearer) => Ok(Caller::Host(host::authenticate(&services.db, bearer).await?)),
    }
}

async fn authenticate_key(services: &Services, secret: &SecretString) -> Result<Caller, Error> {
    let digest = secret::digest(secret.expose_secret());
    if let Some(caller) = services.keys.get(&digest) {
        return Ok(Caller::Key(caller));
    }
    let Some(row) = find_key(&services.db, digest).await? else {
        tracing::warn!(prefix = %key::shown_prefix(secret), "an API key was refused");
        return Err(refused_key());
    };
    let caller = KeyCaller { id: row.id, team_id: row.team_id, digest };
    services.keys.put(digest, caller.clone());
    touch(services, &row);
    Ok(Caller::Key(caller))
}

/// The key that a URL was signed with, which opens what its owner signed. `digest`: of the signature itself, under which
/// the key is remembered for a moment.
pub(crate) async fn signer(services: &Services, id: ApiKeyId, digest: [u8; 32]) -> Result<Caller, Error> {
    if let Some(caller) = services.signers.get(&digest) {
        return Ok(Caller::Key(caller));
    }
    let row = good_keys().filter(api_key::Column::Id.eq(id)).one(&services.db).await?;
    let row = row.ok_or_else(|| Error::unauthenticated("the API key that signed the URL is gone"))?;
    let own = row.digest.try_into().map_err(|_| Error::Task("a key's digest is malformed".to_owned()))?;
    let caller = KeyCaller { id: row.id, team_id: row.team_id, digest: own };
    services.signers.put(digest, caller.clone());
    Ok(Caller::Key(caller))
}

fn refused_key() -> Error {
    Error::unauthenticated("the API key is unknown, was revoked or has expired")
}

async fn find_key(db: &DatabaseConnection, digest: [u8; 32]) -> Result<Option<api_key::Model>, Error> {
    Ok(good_keys().filter(api_key::Column::Digest.eq(digest.to_vec())).one(db).await?)
}

/// Keys that still open anything: not expired, their team still there, and whoever made them not disabled.
fn good_keys() -> Select<api_key::Entity> {
    let living = team::Entity::find()
        .select_only()
        .column(team::Column::Id)
        .filter(team::Column::DeletedAt.is_null())
        .into_query();
    let disabled = user::Entity::find()
        .select_only()
        .column(user::Column::Id)
        .filter(user::Column::Status.eq(UserStatus::Disabled))
        .into_query();
    api_key::Entity::find()
        .filter(
            Condition::any()
                .add(api_key::Column::ExpiresAt.is_null())
                .add(api_key::Column::ExpiresAt.gt(now())),
        )
        .filter(api_key::Column::TeamId.in_subquery(living))
        .filter(
            Condition::any()
                .add(api_key::Column::CreatedBy.is_null())
                .add(api_key::Column::CreatedBy.not_in_subquery(disabled)),
        )
}

/// Notes that the key was used, aside and at most once a minute.
fn touch(services: &Services, row: &api_key::Model) {
    let at = now();
    if row.last_used_at.is_some_and(|last| at - last < LAST_USED_EVERY) || services.stopping.is_cancelled() {
        return;
    }
    let (db, id) = (services.db.clone(), row.id);
    services.tasks.spawn(async move {
        let written = api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedAt, at.into())
            .filter(api_key::Column::Id.eq(id))
            .filter(
                Condition::any()
                    .add(api_key::Column::LastUsedAt.is_null())
                    .add(api_key::Column::LastUsedAt.lt(at - LAST_USED_EVERY)),
            )
            .exec(&db)
            .await;
        if let Err(error) = written {
            tracing::warn!(key = %id, %error, "when a key was last used could not be noted");
        }
    });
}

impl Caller {
    /// The key, where it is one.
    fn key(&self) -> Result<&KeyCaller, Error> {
        match self {
            Self::Key(key) => Ok(key),
            Self::Host(_) => Err(Error::forbidden("a host's token does not open this; an API key is wanted")),
            Self::Anonymous => Err(Error::unauthenticated("an API key is wanted, in the header X-API-Key")),
        }
    }

    /// Whether what was accepted once is still accepted now; for connections that live long. Asks the database.
    pub async fn recheck(&self, services: &Services) -> Result<(), Error> {
        match self {
            Self::Anonymous => Ok(()),
            Self::Key(key) => match find_key(&services.db, key.digest).await? {
                Some(_) => Ok(()),
                None => {
                    services.keys.remove(&key.digest);
                    Err(refused_key())
                }
            },
            Self::Host(id) => host::recheck(&services.db, *id).await,
        }
    }
}

/// Keys that were accepted a moment ago, by their digest.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    accepted: Mutex<HashMap<[u8; 32], (KeyCaller, Instant)>>,
}

impl KeyCache {
    fn get(&self, digest: &[u8; 32]) -> Option<KeyCaller> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.get(digest).filter(|(_, at)| at.elapsed() < CACHED).map(|(caller, _)| caller.clone())
    }

    fn put(&self, digest: [u8; 32], caller: KeyCaller) {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if accepted.len() >= CACHED_KEYS {
            accepted.retain(|_, (_, at)| at.elapsed() < CACHED);
        }
        if accepted.len() < CACHED_KEYS {
            accepted.insert(digest, (caller, Instant::now()));
        }
    }

    fn remove(&self, digest: &[u8; 32]) {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}
