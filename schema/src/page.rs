//! Relay pages: cursors, bounds, and the one statement that reads a page.

use async_graphql::{
    Object,
    connection::{Connection, Edge, EmptyFields},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use sea_orm::{
    Condition, DatabaseConnection, EntityTrait, Order, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    Select, prelude::Expr, sea_query::ExprTrait,
};
use uuid::Uuid;

use crate::Error;

/// Items on a page when nobody says how many.
pub(crate) const DEFAULT: usize = 50;
/// Items on a page at most.
pub(crate) const MAX: usize = 200;

/// How many items a field is asked for, for the reckoning of complexity. Wrong values count as the most.
pub(crate) fn cost(first: Option<i32>, last: Option<i32>) -> usize {
    first.or(last).map_or(DEFAULT, |n| usize::try_from(n).map_or(MAX, |n| n.min(MAX)))
}

/// A place in the order by (`created_at`, `id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub created_at: DateTime<Utc>,
    pub id: Uuid,
}

impl Cursor {
    fn encode(self) -> String {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.created_at.timestamp_micros().to_be_bytes());
        bytes[8..].copy_from_slice(self.id.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn decode(field: &str, text: &str) -> Result<Self, Error> {
        let parse = || {
            let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
            let (micros, id) = bytes.split_at(8);
            let created_at = DateTime::from_timestamp_micros(i64::from_be_bytes(micros.try_into().ok()?))?;
            Some(Self { created_at, id: Uuid::from_slice(id).ok()? })
        };
        parse().ok_or_else(|| Error::invalid(field, "this is no cursor that came from a page"))
    }
}

/// The arguments of a connection field.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arguments {
    pub first: Option<i32>,
    pub after: Option<String>,
    pub last: Option<i32>,
    pub before: Option<String>,
}

struct Window {
    after: Option<Cursor>,
    before: Option<Cursor>,
    limit: u64,
    backwards: bool,
}

impl Arguments {
    fn window(&self) -> Result<Window, Error> {
        if self.first.is_some() && self.last.is_some() {
            return Err(Error::invalid("last", "`first` and `last` exclude each other"));
        }
        let bounded = |field: &str, n: Option<i32>| match n {
            None => Ok(DEFAULT as u64),
            Some(n) => u64::try_from(n)
                .ok()
                .filter(|n| *n <= MAX as u64)
                .ok_or_else(|| Error::invalid(field, format!("`{field}` is from 0 to {MAX}, not {n}"))),
        };
        let backwards = self.last.is_some();
        let limit = if backwards { bounded("last", self.last)? } else { bounded("first", self.first)? };
        let cursor = |field: &str, text: &Option<String>| {
            text.as_deref().map(|text| Cursor::decode(field, text)).transpose()
        };
        Ok(Window {
            after: cursor("after", &self.after)?,
            before: cursor("before", &self.before)?,
            limit,
            backwards,
        })
    }
}

/// `totalCount` of a connection, counted only when it is asked for.
pub struct Total {
    count: Box<dyn Fn() -> BoxFuture<'static, Result<u64, Error>> + Send + Sync>,
}

/// What a connection has besides its page.
#[Object]
impl Total {
    /// How many there are on all pages together.
    async fn total_count(&self) -> Result<i32, Error> {
        Ok(i32::try_from((self.count)().await?).unwrap_or(i32::MAX))
    }
}

/// Reads one page in the order by (`created_at`, `id`) and one row more, to know whether another page follows.
pub(crate) async fn read<E, T>(
    db: &DatabaseConnection,
    select: Select<E>,
    (created_at, id): (E::Column, E::Column),
    arguments: &Arguments,
    item: impl Fn(E::Model) -> (Cursor, T),
) -> Result<Connection<String, T, Total, EmptyFields>, Error>
where
    E: EntityTrait,
    E::Model: Send + Sync,
    T: async_graphql::OutputType,
{
    let window = arguments.window()?;
    let column = |column: E::Column| Expr::col((E::default(), column));
    let mut rows = select.clone();
    if let Some(after) = window.after {
        rows =
            rows.filter(Condition::any().add(column(created_at).gt(after.created_at)).add(
                Condition::all().add(column(created_at).eq(after.created_at)).add(column(id).gt(after.id)),
            ));
    }
    if let Some(before) = window.before {
        rows = rows.filter(Condition::any().add(column(created_at).lt(before.created_at)).add(
            Condition::all().add(column(created_at).eq(before.created_at)).add(column(id).lt(before.id)),
        ));
    }
    let order = if window.backwards { Order::Desc } else { Order::Asc };
    let mut rows =
        rows.order_by(created_at, order.clone()).order_by(id, order).limit(window.limit + 1).all(db).await?;
    let more = rows.len() as u64 > window.limit;
    rows.truncate(usize::try_from(window.limit).unwrap_or(MAX));
    if window.backwards {
        rows.reverse();
    }
    let (has_previous, has_next) =
        if window.backwards { (more, window.before.is_some()) } else { (window.after.is_some(), more) };
    let db = db.clone();
    let count = Box::new(move || -> BoxFuture<'static, Result<u64, Error>> {
        let (select, db) = (select.clone(), db.clone());
        Box::pin(async move { Ok(select.count(&db).await?) })
    });
    let mut connection = Connection::with_additional_fields(has_previous, has_next, Total { count });
    connection.edges.extend(rows.into_iter().map(|row| {
        let (cursor, node) = item(row);
        Edge::new(cursor.encode(), node)
    }));
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use wrenn_entities::time::now;

    use super::*;

    #[test]
    fn a_cursor_is_read_back() {
        let cursor = Cursor { created_at: now(), id: Uuid::now_v7() };
        assert_eq!(Cursor::decode("after", &cursor.encode()).expect("reads"), cursor);
        let error = Cursor::decode("after", "nonsense").expect_err("is refused");
        assert_eq!(error.field(), Some("after"));
    }

    #[test]
    fn bounds_are_checked() {
        let arguments = Arguments { first: Some(201), ..Default::default() };
        assert_eq!(
            arguments.window().err().and_then(|e| e.field().map(str::to_owned)).as_deref(),
            Some("first")
        );
        let arguments = Arguments { first: Some(1), last: Some(1), ..Default::default() };
        assert!(arguments.window().is_err());
        assert_eq!(cost(Some(1_000_000), None), MAX);
    }
}
