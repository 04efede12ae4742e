//! Requests to what listens in capsules, by name and by path.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, RequestBuilder, Response, redirect::Policy};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::Client;

/// What the control plane of a test is told its capsules' domain is. No resolver is asked for it.
pub const DOMAIN: &str = "capsules.localhost";

/// How a port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Name,
    Path,
}

impl Form {
    pub const BOTH: [Self; 2] = [Self::Name, Self::Path];
}

impl Client {
    /// A request without credentials, whose redirects are not followed.
    pub fn port_request(
        &self,
        form: Form,
        method: Method,
        capsule: &str,
        port: u16,
        path: &str,
    ) -> Result<RequestBuilder> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(Duration::from_secs(120))
            .build()
            .context("making an HTTP client")?;
        Ok(match form {
            Form::Name => {
                let host = format!("{port}-{capsule}.{DOMAIN}");
                http.request(method, format!("{}{path}", self.base())).header("Host", host)
            }
            Form::Path => http.request(method, self.port_url(capsule, port, path)),
        })
    }

    /// Where a port is by path.
    pub fn port_url(&self, capsule: &str, port: u16, path: &str) -> String {
        format!("{}/proxy/{capsule}/{port}{path}", self.base())
    }

    /// `GET` with this caller's key.
    pub async fn port_get(&self, form: Form, capsule: &str, port: u16, path: &str) -> Result<Response> {
        let request = self.port_request(form, Method::GET, capsule, port, path)?;
        Ok(request.header("X-API-Key", self.key().unwrap_or_default()).send().await?)
    }

    /// A WebSocket to a port, with this caller's key.
    pub async fn port_socket(
        &self,
        form: Form,
        capsule: &str,
        port: u16,
        path: &str,
    ) -> Result<WebSocketStream<TcpStream>> {
        let address = self.base().trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&address).await?;
        let url = match form {
            Form::Name => format!("ws://{port}-{capsule}.{DOMAIN}{path}"),
            Form::Path => format!("ws://{address}/proxy/{capsule}/{port}{path}"),
        };
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("X-API-Key", self.key().unwrap_or_default().parse()?);
        let (socket, _) =
            tokio_tungstenite::client_async(request, stream).await.context("opening a WebSocket")?;
        Ok(socket)
    }

    pub async fn set_port_public(&self, capsule: &str, port: u16, public: bool) -> Result<()> {
        let query = "mutation($id: ID!, $port: Int!, $public: Boolean!) {
            setPortPublic(capsuleId: $id, port: $port, public: $public) { capsule { id } }
        }";
        self.run(query, json!({ "id": capsule, "port": port, "public": public })).await.map(drop)
    }

    /// The token of a preview's URL.
    pub async fn preview_token(&self, capsule: &str, port: u16) -> Result<String> {
        let query =
            "mutation($id: ID!, $port: Int!) { createPreviewUrl(capsuleId: $id, port: $port) { url } }";
        let made: Value = self.get("createPreviewUrl", query, json!({ "id": capsule, "port": port })).await?;
        let url = made["url"].as_str().context("a URL")?;
        Ok(url.split_once("wrenn_token=").context("a token")?.1.to_owned())
    }

    /// A signed URL of a file; `method` is `GET` or `PUT`.
    pub async fn file_url(&self, capsule: &str, path: &str, method: &str) -> Result<String> {
        let query = "mutation($id: ID!, $path: String!, $method: FileMethod!) {
            createFileUrl(capsuleId: $id, path: $path, method: $method) { url }
        }";
        let variables = json!({ "id": capsule, "path": path, "method": method });
        let made: Value = self.get("createFileUrl", query, variables).await?;
        Ok(made["url"].as_str().context("a URL")?.to_owned())
    }
}
