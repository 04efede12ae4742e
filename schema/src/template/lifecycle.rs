//! How templates come and go.
//!
//! ```text
//! making ──▶ ready ──▶ deleted ──▶ files gone
//!    │         ▲          ▲
//!    │         └ takes the name of the one it overwrites, which is deleted in the same moment
//!    └──▶ deleted ──▶ files gone: row gone
//! ```
//! - *making*: written before its host is told, so that whatever the host makes is known here. It is under way as long
//!   as the capsule that it is a snapshot of is held in `snapshotting`.
//! - *deleted* (`deleted_at` is set): nobody finds it any more. Capsules made from it go on, they have files of their
//!   own. Its host still has its files as long as `host_id` is there; the job `template-files` takes them away.

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect,
    Select, prelude::Expr, sea_query::Query,
};
use wrenn_entities::{
    TeamId, TemplateId,
    capsule::{self, CapsuleState},
    idempotency_key,
    template::{Column, Entity, Model, TemplateState},
    time::now,
};
use wrenn_proto::agent::v1 as agent;

use super::{is_id, visible};
use crate::{Error, Services, database};

/// Whether the team may make a template of this name now. To be called in the transaction that writes it.
pub(crate) async fn check_name(
    db: &impl ConnectionTrait,
    team_id: TeamId,
    name: &str,
    overwrite: bool,
) -> Result<(), Error> {
    if is_id(name) {
        return Err(Error::invalid("name", "a name that looks like an id would never be found"));
    }
    let taken = |message: String| Err(Error::conflict(message).with_field("name"));
    let same = Entity::find()
        .filter(Column::TeamId.is_in([team_id, TeamId::PLATFORM]))
        .filter(Column::Name.eq(name))
        .filter(Column::DeletedAt.is_null())
        .all(db)
        .await?;
    for row in same {
        if row.id.is_built_in() || row.team_id != team_id {
            return taken(format!("`{name}` is a template of the platform's; choose another name"));
        }
        if row.state == TemplateState::Making {
            return taken(format!("a template `{name}` is being made at the moment"));
        }
        if !overwrite {
            return taken(format!("there is a template `{name}` already; `overwrite` takes its place"));
        }
    }
    Ok(())
}

/// What is being made is there: everybody finds it under its name, and nobody finds any more what had the name
/// before. `None`: it was taken back meanwhile.
pub(crate) async fn publish(
    services: &Services,
    id: TemplateId,
    made: &agent::SnapshotCapsuleResponse,
) -> Result<Option<Model>, Error> {
    let transaction = database::begin(&services.db).await?;
    let making = Entity::find_by_id(id)
        .filter(Column::State.eq(TemplateState::Making))
        .filter(Column::DeletedAt.is_null())
        .lock_exclusive()
        .one(&transaction)
        .await?;
    let Some(making) = making else { return Ok(None) };
    let overwritten = Entity::update_many()
        .col_expr(Column::DeletedAt, Expr::value(now()))
        .filter(Column::TeamId.eq(making.team_id))
        .filter(Column::Name.eq(&making.name))
        .filter(Column::State.eq(TemplateState::Ready))
        .filter(Column::DeletedAt.is_null())
        .exec(&transaction)
        .await?;
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let ready = Entity::update_many()
        .col_expr(Column::State, Expr::value(TemplateState::Ready))
        .col_expr(Column::Vcpus, Expr::value(number(made.vcpus)))
        .col_expr(Column::MemoryMib, Expr::value(number(made.memory_mib)))
        .col_expr(Column::DiskMib, Expr::value(number(made.disk_mib)))
        .col_expr(Column::SizeBytes, Expr::value(i64::try_from(made.written_bytes).unwrap_or(i64::MAX)))
        .filter(Column::Id.eq(id))
        .exec_with_returning(&transaction)
        .await?;
    transaction.commit().await?;
    if overwritten.rows_affected > 0 {
        services.templates_changed.notify_one();
    }
    Ok(ready.into_iter().next())
}

/// Takes back what could not be made, and the key of the request for it. What the host may have made of it is taken
/// away there later.
pub(crate) async fn withdraw(services: &Services, id: TemplateId) -> Result<(), Error> {
    let transaction = database::begin(&services.db).await?;
    idempotency_key::Entity::delete_many()
        .filter(idempotency_key::Column::TemplateId.eq(id))
        .exec(&transaction)
        .await?;
    Entity::update_many()
        .col_expr(Column::DeletedAt, Expr::value(now()))
        .filter(Column::Id.eq(id))
        .filter(Column::State.eq(TemplateState::Making))
        .filter(Column::DeletedAt.is_null())
        .exec(&transaction)
        .await?;
    transaction.commit().await?;
    services.templates_changed.notify_one();
    Ok(())
}

/// Deletes one of the team's own. Its files go later.
pub(super) async fn delete(services: &Services, team_id: TeamId, id: TemplateId) -> Result<(), Error> {
    let missing = || Error::not_found(format!("there is no template {id}")).with_field("id");
    let row = visible(team_id).filter(Column::Id.eq(id)).one(&services.db).await?.ok_or_else(missing)?;
    if row.id.is_built_in() {
        return Err(Error::failed_precondition("the built-in templates cannot be deleted"));
    }
    if row.team_id != team_id {
        return Err(Error::forbidden("a template of the platform's is not the team's to delete"));
    }
    let deleted = Entity::update_many()
        .col_expr(Column::DeletedAt, Expr::value(now()))
        .filter(Column::Id.eq(id))
        .filter(Column::DeletedAt.is_null())
        .exec(&services.db)
        .await?;
    if deleted.rows_affected == 0 {
        return Err(missing());
    }
    services.templates_changed.notify_one();
    Ok(())
}

/// Those being made that nobody is at any more: whoever was is gone.
pub(crate) async fn abandoned(db: &DatabaseConnection) -> Result<Vec<Model>, Error> {
    let held = Query::select()
        .column(capsule::Column::Id)
        .from(capsule::Entity)
        .and_where(capsule::Column::State.eq(CapsuleState::Snapshotting))
        .and_where(capsule::Column::OperationUntil.gt(now()))
        .to_owned();
    Ok(Entity::find()
        .filter(Column::State.eq(TemplateState::Making))
        .filter(Column::DeletedAt.is_null())
        .filter(
            Condition::any()
                .add(Column::SourceCapsuleId.is_null())
                .add(Column::SourceCapsuleId.not_in_subquery(held)),
        )
        .all(db)
        .await?)
}

/// Deleted ones of which a host still has files.
pub(crate) fn with_files_left() -> Select<Entity> {
    Entity::find().filter(Column::DeletedAt.is_not_null()).filter(Column::HostId.is_not_null())
}

/// Notes that the host has nothing of it any more. One that was never there leaves no row.
pub(crate) async fn files_gone(db: &DatabaseConnection, row: &Model) -> Result<(), Error> {
    if row.state == TemplateState::Making {
        Entity::delete_by_id(row.id).exec(db).await?;
    } else {
        Entity::update_many()
            .col_expr(Column::HostId, Expr::value(None::<wrenn_entities::HostId>))
            .filter(Column::Id.eq(row.id))
            .exec(db)
            .await?;
    }
    Ok(())
}
