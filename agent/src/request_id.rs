//! The id that a request carries from the API through this agent into the guest, for the logs of all three.

use std::fmt;

use hyper::HeaderMap;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use wrenn_proto::REQUEST_ID;

/// Longer ones are not taken over into the logs.
const LONGEST: usize = 128;

#[derive(Debug, Clone)]
pub struct RequestId(MetadataValue<Ascii>);

impl RequestId {
    /// For what nobody asked for.
    pub fn new() -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self(MetadataValue::try_from(id).unwrap_or_else(|_| MetadataValue::from_static("-")))
    }

    /// The caller's, or one of our own.
    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        metadata
            .get(REQUEST_ID)
            .filter(|id| id.len() <= LONGEST)
            .map_or_else(Self::new, |id| Self(id.clone()))
    }

    /// The same of a plain HTTP request.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let id = headers.get(REQUEST_ID).filter(|id| id.len() <= LONGEST);
        id.and_then(|id| MetadataValue::try_from(id.as_bytes()).ok()).map_or_else(Self::new, Self)
    }

    pub fn put_into(&self, metadata: &mut MetadataMap) {
        metadata.insert(REQUEST_ID, self.0.clone());
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or("-"))
    }
}
