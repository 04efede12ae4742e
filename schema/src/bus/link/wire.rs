//! What replicas say to each other over Redis: JSON, so that versions side by side can ignore what they do not know.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::Change;

/// One message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Message<'a> {
    /// The replica, by an id that is new with each of its lives.
    pub(super) from: Uuid,
    /// How many changes it has had to tell, this one included. Who knows a smaller number but one has missed some.
    pub(super) told: u64,
    pub(super) word: Word<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Word<'a> {
    /// It is there; said regularly.
    Alive,
    /// It ends and will have nothing more to tell.
    Leaving,
    Change(Cow<'a, Change>),
}

impl Message<'_> {
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("rows are JSON, and memory takes all of it")
    }
}

impl Word<'_> {
    /// The same without taking it.
    pub(super) fn borrowed(&self) -> Word<'_> {
        match self {
            Self::Alive => Word::Alive,
            Self::Leaving => Word::Leaving,
            Self::Change(change) => Word::Change(Cow::Borrowed(change)),
        }
    }
}
