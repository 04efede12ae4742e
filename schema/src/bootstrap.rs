//! The first user, team and keys of a fresh installation.

use rand::distr::{Distribution, Uniform};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    Set,
};
use secrecy::SecretString;
use wrenn_entities::{
    TeamId, UserId, api_key,
    id::TypedId,
    membership::{self, Role},
    team,
    time::now,
    user::{self, UserStatus},
};

use crate::{Error, database, key};

/// What an installation is used with. Shown once; only digests are kept.
#[derive(Debug)]
pub struct Keys {
    /// The first team.
    pub team_id: TeamId,
    /// Of the first team.
    pub team: SecretString,
    /// Of the platform's own team: may create hosts.
    pub platform: SecretString,
}

/// Makes the first user (an admin) and their team. `false`: there is a user already, nothing was made.
pub async fn bootstrap(
    db: &DatabaseConnection,
    user_name: &str,
    email: &str,
    team_name: &str,
) -> Result<bool, Error> {
    let transaction = database::begin(db).await?;
    if user::Entity::find().count(&transaction).await? > 0 {
        return Ok(false);
    }
    let at = now();
    let user = user::ActiveModel {
        id: Set(UserId::generate()),
        name: Set(user_name.to_owned()),
        email: Set(email.to_lowercase()),
        status: Set(UserStatus::Active),
        is_admin: Set(true),
        created_at: Set(at),
    }
    .insert(&transaction)
    .await?;
    let team = team::ActiveModel {
        id: Set(TeamId::generate()),
        name: Set(team_name.to_owned()),
        slug: Set(slug()?),
        created_at: Set(at),
        deleted_at: Set(None),
    }
    .insert(&transaction)
    .await?;
    membership::ActiveModel {
        user_id: Set(user.id),
        team_id: Set(team.id),
        role: Set(Role::Owner),
        created_at: Set(at),
    }
    .insert(&transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Deletes the keys of this name of the platform's and of the first team, and issues two new ones.
pub async fn replace_keys(db: &DatabaseConnection, name: &str) -> Result<Keys, Error> {
    let transaction = database::begin(db).await?;
    let team = team::Entity::find()
        .filter(team::Column::Id.ne(TeamId::PLATFORM))
        .filter(team::Column::DeletedAt.is_null())
        .order_by_asc(team::Column::CreatedAt)
        .one(&transaction)
        .await?
        .ok_or_else(|| Error::failed_precondition("there is no team yet"))?;
    let owner = membership::Entity::find()
        .filter(membership::Column::TeamId.eq(team.id))
        .filter(membership::Column::Role.eq(Role::Owner))
        .one(&transaction)
        .await?
        .map(|membership| membership.user_id);
    api_key::Entity::delete_many()
        .filter(api_key::Column::TeamId.is_in([team.id, TeamId::PLATFORM]))
        .filter(api_key::Column::Name.eq(name))
        .exec(&transaction)
        .await?;
    let platform = key::issue(&transaction, TeamId::PLATFORM, name, owner).await?;
    let own = key::issue(&transaction, team.id, name, owner).await?;
    transaction.commit().await?;
    Ok(Keys { team_id: team.id, team: own, platform })
}

/// Twelve hexadecimal digits, as `a1b2c3-d1e2f3`.
fn slug() -> Result<String, Error> {
    let digits = Uniform::new(0u32, 1 << 24).map_err(|error| Error::Task(error.to_string()))?;
    let mut random = rand::rng();
    Ok(format!("{:06x}-{:06x}", digits.sample(&mut random), digits.sample(&mut random)))
}
