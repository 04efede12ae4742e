//! Capsules through GraphQL.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Failure};

/// What the tests ask of every capsule.
pub(super) const FIELDS: &str = "fragment Fields on Capsule {
    id name state cause { code message } template { id name } host { id }
    vcpus memoryMib diskMib timeoutSec labels createdAt startedAt lastActiveAt
}";

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capsule {
    pub id: String,
    pub name: Option<String>,
    pub state: String,
    pub cause: Option<Cause>,
    pub template: Named,
    pub host: Option<Node>,
    pub vcpus: i64,
    pub memory_mib: i64,
    pub disk_mib: i64,
    pub timeout_sec: i64,
    pub labels: Value,
    pub created_at: String,
    pub started_at: Option<String>,
    pub last_active_at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Cause {
    pub code: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Named {
    pub id: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Node {
    pub id: String,
}

#[derive(Deserialize)]
struct Payload {
    capsule: Capsule,
}

impl Client {
    /// Creates a capsule of the `minimal` template with what `input` says, and insists that it runs.
    pub async fn create(&self, input: Value) -> Result<Capsule> {
        let capsule = self.create_as_answered(input).await?;
        ensure!(capsule.state == "RUNNING", "created, but {} ({:?})", capsule.state, capsule.cause);
        Ok(capsule)
    }

    pub async fn create_as_answered(&self, input: Value) -> Result<Capsule> {
        let query = format!(
            "mutation($input: CreateCapsuleInput!) {{ createCapsule(input: $input) {{ capsule {{ ...Fields }} }} }} {FIELDS}"
        );
        let payload: Payload = self.get("createCapsule", &query, json!({ "input": input })).await?;
        Ok(payload.capsule)
    }

    pub async fn pause(&self, id: &str) -> Result<Capsule> {
        self.change("pauseCapsule", id).await
    }

    pub async fn resume(&self, id: &str) -> Result<Capsule> {
        self.change("resumeCapsule", id).await
    }

    pub async fn destroy(&self, id: &str) -> Result<Capsule> {
        self.change("destroyCapsule", id).await
    }

    pub async fn ping(&self, id: &str) -> Result<Capsule> {
        self.change("pingCapsule", id).await
    }

    async fn change(&self, mutation: &str, id: &str) -> Result<Capsule> {
        let query =
            format!("mutation($id: ID!) {{ {mutation}(id: $id) {{ capsule {{ ...Fields }} }} }} {FIELDS}");
        let payload: Payload = self
            .get(mutation, &query, json!({ "id": id }))
            .await
            .with_context(|| format!("{mutation} {id}"))?;
        Ok(payload.capsule)
    }

    pub async fn set_timeout(&self, id: &str, timeout_sec: i64) -> Result<Capsule> {
        let query = format!(
            "mutation($id: ID!, $sec: Int!) {{ setCapsuleTimeout(id: $id, timeoutSec: $sec) {{ capsule {{ ...Fields }} }} }} {FIELDS}"
        );
        let payload: Payload =
            self.get("setCapsuleTimeout", &query, json!({ "id": id, "sec": timeout_sec })).await?;
        Ok(payload.capsule)
    }

    /// Nothing if there is none for this caller.
    pub async fn capsule(&self, id: &str) -> Result<Option<Capsule>> {
        let query = format!("query($id: ID!) {{ capsule(id: $id) {{ ...Fields }} }} {FIELDS}");
        match self.get("capsule", &query, json!({ "id": id })).await {
            Err(error) if Failure::code_of(&error) == Some("NOT_FOUND") => Ok(None),
            outcome => outcome,
        }
    }

    /// Every capsule of the team that `filter` lets through, following the pages to the end.
    pub async fn capsules(&self, filter: Value) -> Result<Vec<Capsule>> {
        let query = format!(
            "query($filter: CapsuleFilter, $after: String) {{
                capsules(first: 100, after: $after, filter: $filter) {{
                    edges {{ node {{ ...Fields }} }} pageInfo {{ hasNextPage endCursor }}
                }}
            }} {FIELDS}"
        );
        let mut found = Vec::new();
        let mut after = Value::Null;
        loop {
            let page: Value =
                self.get("capsules", &query, json!({ "filter": filter, "after": after })).await?;
            for edge in page["edges"].as_array().context("edges")? {
                found.push(Capsule::deserialize(&edge["node"])?);
            }
            if page["pageInfo"]["hasNextPage"] != true {
                return Ok(found);
            }
            after = page["pageInfo"]["endCursor"].clone();
        }
    }

    /// `capsule(id)` as a subscription; each item's `capsule` is read by [`Capsule::from_event`].
    pub async fn watch_capsule(&self, id: &str) -> Result<super::Subscription> {
        let query = format!("subscription($id: ID!) {{ capsule(id: $id) {{ ...Fields }} }} {FIELDS}");
        self.subscribe(&query, json!({ "id": id })).await
    }
}

impl Capsule {
    /// The capsule in the data of one event of the subscription `capsule`.
    pub fn from_event(data: &Value) -> Result<Self> {
        Self::deserialize(&data["capsule"]).context("the shape of a capsule event")
    }

    pub fn cause_code(&self) -> &str {
        self.cause.as_ref().map_or("", |cause| &cause.code)
    }
}
