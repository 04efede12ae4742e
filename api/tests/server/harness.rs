use std::{sync::Once, time::Duration};

use reqwest::{Client, RequestBuilder, Response};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::Mutex, time::timeout};
use wrenn_api::{Bootstrap, Config, Server, ServerBuilder};

use crate::agent::ControlPlane;

/// Longer than anything here takes; only a failing test waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// For a test that takes much memory, and for one that measures it.
pub static MEMORY: Mutex<()> = Mutex::const_new(());

pub const VIEWER: &str = "{ viewer { team { id } } }";

/// A server with its own directory, its first team, and a client.
pub struct Running {
    pub server: Server,
    pub http: Client,
    pub team_id: String,
    pub api_key: String,
    admin_key: String,
    config: Config,
    _dir: TempDir,
}

/// What is waited for comes, or the test fails.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("in time")
}

fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().expect("nobody else installs one");
    });
}

pub fn bootstrap_options() -> Bootstrap {
    Bootstrap {
        user_name: "Ada".to_owned(),
        email: "ada@example.org".to_owned(),
        team_name: "Engines".to_owned(),
        key_name: "test".to_owned(),
    }
}

impl Running {
    pub async fn start(settings: &str) -> Self {
        Self::start_with(Server::builder(), settings).await
    }

    /// `settings`: lines of TOML besides the directory and a free port.
    pub async fn start_with(builder: ServerBuilder, settings: &str) -> Self {
        install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let config = Config::from_toml(&format!(
            "WRENN_DIR = '{}'\nWRENN_API_LISTEN = '127.0.0.1:0'\n{settings}",
            dir.path().display()
        ))
        .unwrap();
        let first = bootstrap_options().run(&config).await.unwrap();
        let server = builder.start(config.clone()).await.unwrap();
        let http = Client::builder().timeout(DEADLINE).build().unwrap();
        let api_key = first.api_key.expose_secret().to_owned();
        let admin_key = first.admin_key.expose_secret().to_owned();
        Self { server, http, team_id: first.team_id, api_key, admin_key, config, _dir: dir }
    }

    /// Its keys open nothing any more: they are replaced, as another run of `bootstrap` does.
    pub async fn revoke_keys(&self) {
        bootstrap_options().run(&self.config).await.unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.local_addr())
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(path))
    }

    /// `POST /graphql` without anything yet.
    pub fn post(&self) -> RequestBuilder {
        self.http.post(self.url("/graphql"))
    }

    pub fn query(&self, query: &str) -> RequestBuilder {
        self.post().json(&json!({ "query": query }))
    }
}

impl ControlPlane for Running {
    async fn carry_out(&self, as_platform: bool, query: &str, variables: Value) -> Value {
        let mut request = self.post().json(&json!({ "query": query, "variables": variables }));
        if as_platform {
            request = request.header("x-api-key", &self.admin_key);
        }
        let mut body: Value = request.send().await.unwrap().json().await.unwrap();
        assert!(body.get("errors").is_none(), "{body}");
        body["data"].take()
    }
}

/// Status, code of the first error, and the whole body.
pub async fn refusal(request: RequestBuilder) -> (u16, String, Value) {
    let response = request.send().await.unwrap();
    let id = header(&response, "x-request-id");
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let extensions = &body["errors"][0]["extensions"];
    if let Some(shown) = extensions["requestId"].as_str() {
        assert_eq!(shown, id);
    }
    (status, extensions["code"].as_str().unwrap_or_else(|| panic!("no code: {body}")).to_owned(), body)
}

pub fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("no {name}"));
    value.to_str().unwrap().to_owned()
}
