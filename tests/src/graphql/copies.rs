//! Snapshots and forks through GraphQL.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::capsule::{FIELDS, Named};
use super::{Capsule, Client, Failure};

impl Client {
    /// Makes a capsule as it is into a template of this name, in place of one that has it already.
    pub async fn snapshot(&self, id: &str, name: &str) -> Result<Named> {
        let query = "mutation($id: ID!, $name: String!, $overwrite: Boolean) {
            snapshotCapsule(id: $id, name: $name, overwrite: $overwrite) { template { id name } }
        }";
        let variables = json!({ "id": id, "name": name, "overwrite": true });
        let payload: Value = self
            .get("snapshotCapsule", query, variables)
            .await
            .with_context(|| format!("snapshotCapsule {id}"))?;
        Ok(Named::deserialize(&payload["template"])?)
    }

    /// Copies of a capsule, every one of which must run.
    pub async fn fork(&self, id: &str, count: usize) -> Result<Vec<Capsule>> {
        let query = format!(
            "mutation($id: ID!, $count: Int) {{ forkCapsule(id: $id, count: $count) {{ capsules {{ ...Fields }} }} }} {FIELDS}"
        );
        let payload: Value = self
            .get("forkCapsule", &query, json!({ "id": id, "count": count }))
            .await
            .with_context(|| format!("forkCapsule {id}"))?;
        let copies = Vec::<Capsule>::deserialize(&payload["capsules"])?;
        ensure!(copies.len() == count, "{} copies where {count} were asked for", copies.len());
        ensure!(copies.iter().all(|copy| copy.state == "RUNNING"), "forked, but not running: {copies:?}");
        Ok(copies)
    }

    /// The template of this name, nothing if there is none for this caller.
    pub async fn template(&self, name: &str) -> Result<Option<Named>> {
        let query = "query($name: String) { template(name: $name) { id name } }";
        match self.get("template", query, json!({ "name": name })).await {
            Err(error) if Failure::code_of(&error) == Some("NOT_FOUND") => Ok(None),
            outcome => outcome,
        }
    }
}
