//! Files of a capsule: through GraphQL, and their content through HTTP.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Client;

const FIELDS: &str = "name path kind size mode owner group modifiedAt symlinkTarget";

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    pub name: String,
    pub path: String,
    pub kind: String,
    /// Of bytes.
    size: String,
    pub mode: i64,
    pub owner: String,
    pub group: String,
    pub modified_at: String,
    pub symlink_target: Option<String>,
    #[serde(default)]
    pub children: Option<Vec<FileEntry>>,
}

impl FileEntry {
    pub fn size(&self) -> Result<u64> {
        self.size.parse().with_context(|| format!("the size of {}", self.path))
    }
}

impl Client {
    /// What is in a directory, two levels of it if `depth` is 2.
    pub async fn files(&self, capsule: &str, path: &str, depth: u32) -> Result<Vec<FileEntry>> {
        let query = format!(
            "query($id: ID!, $path: String!, $depth: Int) {{ capsule(id: $id) {{
                files(path: $path, depth: $depth) {{ {FIELDS} children {{ {FIELDS} }} }}
            }} }}"
        );
        let variables = json!({ "id": capsule, "path": path, "depth": depth });
        let mut found: Value = self.get("capsule", &query, variables).await?;
        Vec::deserialize(found["files"].take()).context("the shape of `files`")
    }

    pub async fn make_dir(&self, capsule: &str, path: &str, user: Option<&str>) -> Result<FileEntry> {
        let query = format!(
            "mutation($id: ID!, $path: String!, $user: String) {{
                makeDir(capsuleId: $id, path: $path, user: $user) {{ entry {{ {FIELDS} }} }}
            }}"
        );
        let variables = json!({ "id": capsule, "path": path, "user": user });
        let mut made: Value = self.get("makeDir", &query, variables).await?;
        FileEntry::deserialize(made["entry"].take()).context("the shape of `makeDir`")
    }

    pub async fn move_path(&self, capsule: &str, from: &str, to: &str) -> Result<FileEntry> {
        let query = format!(
            "mutation($id: ID!, $from: String!, $to: String!) {{
                movePath(capsuleId: $id, from: $from, to: $to) {{ entry {{ {FIELDS} }} }}
            }}"
        );
        let variables = json!({ "id": capsule, "from": from, "to": to });
        let mut moved: Value = self.get("movePath", &query, variables).await?;
        FileEntry::deserialize(moved["entry"].take()).context("the shape of `movePath`")
    }

    pub async fn remove_path(&self, capsule: &str, path: &str, user: Option<&str>) -> Result<()> {
        let query = "mutation($id: ID!, $path: String!, $user: String) {
            removePath(capsuleId: $id, path: $path, user: $user) { entry { path } }
        }";
        self.run(query, json!({ "id": capsule, "path": path, "user": user })).await.map(drop)
    }

    /// A request about a file's content, with this caller's key.
    pub fn file_request(&self, method: Method, capsule: &str, path: &str) -> Result<RequestBuilder> {
        let mut url = Url::parse(&format!("{}/files/{capsule}", self.base()))?;
        url.query_pairs_mut().append_pair("path", path);
        let request = self.http().request(method, url);
        Ok(match self.key() {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        })
    }

    /// Writes a file as a whole.
    pub async fn upload(&self, capsule: &str, path: &str, content: Vec<u8>) -> Result<()> {
        let answer = self.file_request(Method::PUT, capsule, path)?.body(content).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "PUT {path}: {status}: {}", answer.text().await.unwrap_or_default());
        Ok(())
    }

    /// Reads a file as a whole.
    pub async fn download(&self, capsule: &str, path: &str) -> Result<Vec<u8>> {
        let answer = self.file_request(Method::GET, capsule, path)?.send().await?;
        let status = answer.status();
        let content = answer.bytes().await.with_context(|| format!("reading {path}"))?;
        ensure!(status.is_success(), "GET {path}: {status}: {}", String::from_utf8_lossy(&content));
        Ok(content.into())
    }
}
