//! Requests that may come again: under one key only the first of them makes something.
//!
//! The key is written in the transaction that writes what is made, so there is never one without the other.

use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, Set};
use wrenn_entities::{CapsuleId, TeamId, TemplateId, idempotency_key, time::now};

use crate::{Error, database};

const LENGTH: usize = 255;

/// A client's key, for one mutation with one input.
pub(crate) struct Key {
    team_id: TeamId,
    operation: &'static str,
    key: String,
    /// SHA-256 of the input.
    digest: Vec<u8>,
}

impl Key {
    /// The key of a request that has one. `operation` is the mutation's name.
    pub(crate) fn checked(
        team_id: TeamId,
        operation: &'static str,
        key: Option<String>,
        digest: impl FnOnce() -> Vec<u8>,
    ) -> Result<Option<Self>, Error> {
        let Some(key) = key else { return Ok(None) };
        if key.is_empty() || key.len() > LENGTH || key.contains('\0') {
            return Err(Error::invalid(
                "idempotencyKey",
                format!("`idempotencyKey` is 1 to {LENGTH} bytes long"),
            ));
        }
        Ok(Some(Self { team_id, operation, key, digest: digest() }))
    }

    async fn earlier(&self, db: &impl ConnectionTrait) -> Result<Option<idempotency_key::Model>, Error> {
        let known = (self.team_id, self.operation.to_owned(), self.key.clone());
        match idempotency_key::Entity::find_by_id(known).one(db).await? {
            Some(earlier) if earlier.input_digest != self.digest => {
                Err(Error::conflict("the key was used before with another input")
                    .with_field("idempotencyKey"))
            }
            earlier => Ok(earlier),
        }
    }
}

/// What an earlier request with this key has made.
pub(crate) async fn earlier(
    db: &impl ConnectionTrait,
    key: Option<&Key>,
) -> Result<Option<idempotency_key::Model>, Error> {
    match key {
        Some(key) => key.earlier(db).await,
        None => Ok(None),
    }
}

/// Notes in the transaction that makes it what the request makes.
pub(crate) async fn remember(
    transaction: &impl ConnectionTrait,
    key: Option<&Key>,
    capsule_id: CapsuleId,
    template_id: Option<TemplateId>,
) -> Result<(), Error> {
    let Some(key) = key else { return Ok(()) };
    idempotency_key::ActiveModel {
        team_id: Set(key.team_id),
        operation: Set(key.operation.to_owned()),
        key: Set(key.key.clone()),
        input_digest: Set(key.digest.clone()),
        capsule_id: Set(capsule_id),
        template_id: Set(template_id),
        created_at: Set(now()),
    }
    .insert(transaction)
    .await
    .map_err(|error| if database::is_duplicate(&error) { withdrawn() } else { error.into() })?;
    Ok(())
}

/// A request that was written down, or what an earlier one with the same key has made.
pub(crate) enum Written<T> {
    First(T),
    Again(idempotency_key::Model),
}

/// Ends the transaction in which a request was written down. Did that fail, then perhaps only because another request
/// with the same key was a moment faster and took the name, the room or the capsule for it.
pub(crate) async fn conclude<T>(
    db: &DatabaseConnection,
    transaction: DatabaseTransaction,
    key: Option<&Key>,
    written: Result<T, Error>,
) -> Result<Written<T>, Error> {
    match written {
        Ok(written) => {
            transaction.commit().await?;
            Ok(Written::First(written))
        }
        Err(error) => {
            transaction.rollback().await?;
            earlier(db, key).await?.map(Written::Again).ok_or(error)
        }
    }
}

/// What a repeat gets when nothing came of the first request.
pub(crate) fn withdrawn() -> Error {
    Error::unavailable("the first request with this key could not be carried out; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded() {
        let checked = |key: &str| Key::checked(TeamId::PLATFORM, "test", Some(key.to_owned()), Vec::new);
        assert!(checked("k").is_ok_and(|key| key.is_some()));
        for bad in ["", "a\0", &"x".repeat(256)] {
            assert_eq!(checked(bad).err().as_ref().and_then(Error::field), Some("idempotencyKey"));
        }
    }
}
