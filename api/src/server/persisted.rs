//! Persisted queries, as Apollo's clients use them: a document that was sent once is asked for by its SHA-256 from then on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_graphql::{Request, Value};
use sha2::{Digest, Sha256};
use wrenn_schema::Error;

use crate::ws::PERSISTED;

/// Bytes of all documents that are kept together, and of one of them.
const ALL: usize = 8 * 1024 * 1024;
const ONE: usize = 128 * 1024;

/// Why a request by digest is not carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    // What clients look for, letter by letter, before they send the document itself.
    #[error("PersistedQueryNotFound")]
    NotFound,
    #[error("`extensions.persistedQuery` is {{version: 1, sha256Hash: \"64 hexadecimal digits\"}}")]
    Malformed,
    #[error("`sha256Hash` is not that of the query")]
    OtherDigest,
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::NotFound => Self::not_found(unusable.to_string()),
            Unusable::Malformed | Unusable::OtherDigest => Self::invalid(PERSISTED, unusable.to_string()),
        }
    }
}

type Hash = [u8; 32];

#[derive(Default)]
struct Documents {
    by_hash: HashMap<Hash, (Arc<str>, u64)>,
    bytes: usize,
    /// Grows with every use.
    uses: u64,
}

/// The documents that clients have shown, those that were used lately.
#[derive(Default)]
pub(super) struct Persisted(Mutex<Documents>);

impl Persisted {
    /// Puts the document in its place where a request has only its digest, and remembers it where it has both.
    pub(super) fn resolve(&self, request: &mut Request) -> Result<(), Unusable> {
        let Some(wanted) = request.extensions.get(PERSISTED) else { return Ok(()) };
        let hash = parse(wanted).ok_or(Unusable::Malformed)?;
        if request.query.is_empty() {
            let known = self.documents().get(hash).ok_or(Unusable::NotFound)?;
            request.query = known.to_string();
        } else if hash == Hash::from(Sha256::digest(&request.query)) {
            // Not while the documents are held: a large one takes its time.
            self.documents().put(hash, &request.query);
        } else {
            return Err(Unusable::OtherDigest);
        }
        Ok(())
    }

    fn documents(&self) -> MutexGuard<'_, Documents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Documents {
    fn get(&mut self, hash: Hash) -> Option<Arc<str>> {
        self.uses += 1;
        let (document, used) = self.by_hash.get_mut(&hash)?;
        *used = self.uses;
        Some(document.clone())
    }

    fn put(&mut self, hash: Hash, document: &str) {
        if document.len() > ONE || self.get(hash).is_some() {
            return;
        }
        if self.bytes + document.len() > ALL {
            self.forget_half();
        }
        self.bytes += document.len();
        self.by_hash.insert(hash, (document.into(), self.uses));
    }

    /// Forgets those that were not used for the longest time.
    fn forget_half(&mut self) {
        let mut uses: Vec<u64> = self.by_hash.values().map(|(_, used)| *used).collect();
        let middle = uses.len() / 2;
        let Some((_, oldest_kept, _)) = (middle < uses.len()).then(|| uses.select_nth_unstable(middle))
        else {
            return;
        };
        let oldest_kept = *oldest_kept;
        self.by_hash.retain(|_, (_, used)| *used > oldest_kept);
        self.bytes = self.by_hash.values().map(|(document, _)| document.len()).sum();
    }
}

fn parse(wanted: &Value) -> Option<Hash> {
    let Value::Object(wanted) = wanted else { return None };
    let (Value::Number(version), Value::String(hex)) = (wanted.get("version")?, wanted.get("sha256Hash")?)
    else {
        return None;
    };
    if version.as_u64() != Some(1) || hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = Hash::default();
    for (place, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(query: &str, hash: &str) -> Request {
        let extensions = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } });
        serde_json::from_value(json!({ "query": query, "extensions": extensions })).unwrap()
    }

    fn digest(query: &str) -> String {
        Sha256::digest(query).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn what_was_shown_once_is_known_by_its_digest() {
        let persisted = Persisted::default();
        let hash = digest("{ viewer }");
        assert_eq!(persisted.resolve(&mut request("", &hash)), Err(Unusable::NotFound));
        assert_eq!(persisted.resolve(&mut request("{ other }", &hash)), Err(Unusable::OtherDigest));
        assert_eq!(persisted.resolve(&mut request("{ viewer }", &hash)), Ok(()));
        let mut asked = request("", &hash.to_uppercase());
        assert_eq!(persisted.resolve(&mut asked), Ok(()));
        assert_eq!(asked.query, "{ viewer }");
        for bad in ["", "zz", &"ä".repeat(32), &hash[1..]] {
            assert_eq!(persisted.resolve(&mut request("{ viewer }", bad)), Err(Unusable::Malformed), "{bad}");
        }
        assert_eq!(persisted.resolve(&mut Request::new("{ viewer }")), Ok(()));
    }

    #[test]
    fn it_never_grows_past_its_bound_and_keeps_what_is_used() {
        let persisted = Persisted::default();
        let used = format!("{{ used }}{}", " ".repeat(ONE / 2));
        let show = |query: &str| persisted.resolve(&mut request(query, &digest(query)));
        show(&used).unwrap();
        for number in 0..3 * ALL / ONE {
            show(&format!("{{ a{number} }}{}", " ".repeat(ONE / 2))).unwrap();
            assert!(persisted.0.lock().unwrap().bytes <= ALL);
            assert_eq!(persisted.resolve(&mut request("", &digest(&used))), Ok(()), "{number}");
        }
        let large = " ".repeat(ONE + 1);
        show(&large).unwrap();
        assert_eq!(persisted.resolve(&mut request("", &digest(&large))), Err(Unusable::NotFound));
    }
}
