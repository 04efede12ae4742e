//! Requests that may come again: under one key only the first of them makes something.
//!
//! The key is written in the transaction that writes what is made, so there is never one without the other.

use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, Set};
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

    /// What an earlier request with this key has made.
    pub(crate) async fn earlier(
        &self,
        db: &impl ConnectionTrait,
    ) -> Result<Option<idempotency_key::Model>, Error> {
        let known = (self.team_id, self.operation.to_owned(), self.key.clone());
        match idempotency_key::Entity::find_by_id(known).one(db).await? {
            Some(earlier) if earlier.input_digest != self.digest => {
                Err(Error::conflict("the key was used before with another input")
                    .with_field("idempotencyKey"))
            }
            earlier => Ok(earlier),
        }
    }

    /// [`Key::earlier`], when there has to be one: the request was a moment too late to write its own.
    pub(crate) async fn faster(&self, db: &impl ConnectionTrait) -> Result<idempotency_key::Model, Error> {
        self.earlier(db).await?.ok_or_else(withdrawn)
    }

    /// Notes in the transaction that makes it what the request makes. `false`: another request was faster, and the
    /// transaction is to be rolled back.
    pub(crate) async fn remember(
        &self,
        transaction: &impl ConnectionTrait,
        capsule_id: CapsuleId,
        template_id: Option<TemplateId>,
    ) -> Result<bool, Error> {
        let inserted = idempotency_key::ActiveModel {
            team_id: Set(self.team_id),
            operation: Set(self.operation.to_owned()),
            key: Set(self.key.clone()),
            input_digest: Set(self.digest.clone()),
            capsule_id: Set(capsule_id),
            template_id: Set(template_id),
            created_at: Set(now()),
        }
        .insert(transaction)
        .await;
        match inserted {
            Ok(_) => Ok(true),
            Err(error) if database::is_duplicate(&error) => Ok(false),
            Err(error) => Err(error.into()),
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
