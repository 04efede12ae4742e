//! API keys.

use async_graphql::{ID, Object};
use chrono::{DateTime, Utc};
use sea_orm::{ActiveModelTrait, ConnectionTrait, Set};
use secrecy::{ExposeSecret, SecretString};
use wrenn_entities::{ApiKeyId, TeamId, UserId, api_key, id::TypedId, time::now};

use crate::{Error, secret};

/// What every API key begins with.
pub(crate) const PREFIX: &str = "wrn_";
/// Random base-62 characters after the prefix: 190 bits.
const RANDOM: usize = 32;
/// Characters of a key that are kept readable.
const SHOWN: usize = 12;

/// A key that programs show. The secret itself is shown once, when it is made.
pub struct ApiKey(pub(crate) api_key::Model);

/// A key that programs show. The secret itself is shown once, when it is made.
#[Object]
impl ApiKey {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    async fn name(&self) -> &str {
        &self.0.name
    }

    /// How the secret begins.
    async fn prefix(&self) -> &str {
        &self.0.prefix
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }

    /// At most a minute behind.
    async fn last_used_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_used_at
    }

    async fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.0.expires_at
    }
}

/// The beginning of a key, for people to recognise it by.
pub(crate) fn shown_prefix(secret: &SecretString) -> String {
    secret.expose_secret().chars().take(SHOWN).collect()
}

/// Makes a key; what is returned is the only copy of its secret.
pub(crate) async fn issue(
    db: &impl ConnectionTrait,
    team_id: TeamId,
    name: &str,
    created_by: Option<UserId>,
) -> Result<SecretString, Error> {
    let key = secret::generate(PREFIX, RANDOM);
    api_key::ActiveModel {
        id: Set(ApiKeyId::generate()),
        team_id: Set(team_id),
        name: Set(name.to_owned()),
        prefix: Set(shown_prefix(&key)),
        digest: Set(secret::digest(key.expose_secret()).to_vec()),
        created_by: Set(created_by),
        created_at: Set(now()),
        last_used_at: Set(None),
        expires_at: Set(None),
    }
    .insert(db)
    .await?;
    Ok(key)
}
