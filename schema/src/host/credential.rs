//! The secrets that agents show.
//!
//! ```text
//! registration (1 h, once) ──▶ issue 1: access (7 d) + refresh (60 d)
//!                                          │ refresh
//!                                          ▼
//!                              issue 2: access + refresh      issue 1 still stands
//!                                          │ first use of anything of issue 2
//!                                          ▼
//!                              issue 1 is gone
//! ```
//! The new pair is there before the old one goes, so that an answer lost on the way locks nobody out.

use chrono::TimeDelta;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter,
    QuerySelect, Set,
};
use secrecy::{ExposeSecret, SecretString};
use wrenn_entities::{
    HostId,
    host_credential::{self, CredentialKind},
    time::now,
};

use crate::{Error, secret};

/// Random base-62 characters of each secret.
const RANDOM: usize = 40;

/// A secret just made, and until when it is good.
pub(crate) struct Issued {
    pub secret: SecretString,
    pub expires_at: chrono::DateTime<chrono::Utc>,
}

fn life(kind: CredentialKind) -> (&'static str, TimeDelta) {
    match kind {
        CredentialKind::Registration => ("wrnreg_", TimeDelta::hours(1)),
        CredentialKind::Access => ("wrnhost_", TimeDelta::days(7)),
        CredentialKind::Refresh => ("wrnrefresh_", TimeDelta::days(60)),
    }
}

/// Makes a secret of the given kind as part of the given issue.
pub(crate) async fn issue(
    db: &impl ConnectionTrait,
    host_id: HostId,
    kind: CredentialKind,
    issue: i64,
) -> Result<Issued, Error> {
    let (prefix, life) = life(kind);
    let secret = secret::generate(prefix, RANDOM);
    let created_at = now();
    let expires_at = created_at + life;
    host_credential::ActiveModel {
        digest: Set(secret::digest(secret.expose_secret()).to_vec()),
        host_id: Set(host_id),
        kind: Set(kind),
        issue: Set(issue),
        created_at: Set(created_at),
        expires_at: Set(expires_at),
        first_used_at: Set(None),
    }
    .insert(db)
    .await?;
    Ok(Issued { secret, expires_at })
}

/// The number of the host's latest issue, 0 if there was none.
pub(crate) async fn latest_issue(db: &impl ConnectionTrait, host_id: HostId) -> Result<i64, Error> {
    let latest: Option<Option<i64>> = host_credential::Entity::find()
        .select_only()
        .column_as(host_credential::Column::Issue.max(), "latest")
        .filter(host_credential::Column::HostId.eq(host_id))
        .into_tuple()
        .one(db)
        .await?;
    Ok(latest.flatten().unwrap_or(0))
}

/// The living credential of that kind with that secret; its first use ends all earlier issues of its host.
pub(crate) async fn redeem(
    db: &impl ConnectionTrait,
    secret: &SecretString,
    kind: CredentialKind,
) -> Result<Option<host_credential::Model>, Error> {
    let digest = secret::digest(secret.expose_secret()).to_vec();
    let found = host_credential::Entity::find_by_id(digest)
        .filter(host_credential::Column::Kind.eq(kind))
        .filter(host_credential::Column::ExpiresAt.gt(now()))
        .one(db)
        .await?;
    let Some(row) = found else { return Ok(None) };
    if row.first_used_at.is_none() {
        host_credential::Entity::update_many()
            .col_expr(host_credential::Column::FirstUsedAt, now().into())
            .filter(host_credential::Column::Digest.eq(row.digest.clone()))
            .exec(db)
            .await?;
        host_credential::Entity::delete_many()
            .filter(host_credential::Column::HostId.eq(row.host_id))
            .filter(host_credential::Column::Issue.lt(row.issue))
            .exec(db)
            .await?;
    }
    Ok(Some(row))
}

/// The host whose access token this is.
pub(crate) async fn authenticate(db: &DatabaseConnection, token: &SecretString) -> Result<HostId, Error> {
    let found = redeem(db, token, CredentialKind::Access).await?;
    found.map(|row| row.host_id).ok_or_else(|| {
        tracing::warn!("a host's token was refused");
        Error::unauthenticated("the token is unknown, was replaced or has expired")
    })
}

/// Whether the host still has a token that is good.
pub(crate) async fn recheck(db: &DatabaseConnection, host_id: HostId) -> Result<(), Error> {
    let living = host_credential::Entity::find()
        .filter(host_credential::Column::HostId.eq(host_id))
        .filter(host_credential::Column::Kind.eq(CredentialKind::Access))
        .filter(host_credential::Column::ExpiresAt.gt(now()))
        .one(db)
        .await?;
    match living {
        Some(_) => Ok(()),
        None => Err(Error::unauthenticated("the host's token has expired")),
    }
}
