//! The three calls of a host, typed from the same SDL that the control plane serves.

use chrono::Utc;
use graphql_client::{GraphQLQuery, Response};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::HostSpecs;

type DateTime = chrono::DateTime<Utc>;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../codegen/schema.graphql", query_path = "src/control/host.graphql")]
struct RegisterHost;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../codegen/schema.graphql", query_path = "src/control/host.graphql")]
struct RefreshHostCredentials;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../codegen/schema.graphql", query_path = "src/control/host.graphql")]
struct HostHeartbeat;

/// Why a call to the control plane came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot reach the control plane")]
    Unreachable(#[source] reqwest::Error),
    #[error("the control plane refused: {message} ({code})")]
    Refused { code: String, message: String },
    #[error("the control plane answered with neither data nor an error (HTTP {0})")]
    Empty(u16),
}

impl ControlError {
    /// Whether the credentials, not the moment, are at fault.
    pub fn denies_credentials(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "UNAUTHENTICATED" || code == "FORBIDDEN")
    }
}

/// What the control plane issues to a host.
pub struct Issued {
    pub host_id: String,
    pub certificate_pem: String,
    pub ca_pem: String,
    pub token: SecretString,
    pub token_expires_at: DateTime,
    pub refresh_token: SecretString,
}

macro_rules! issued {
    ($payload:expr) => {{
        let payload = $payload;
        Issued {
            host_id: payload.host_id,
            certificate_pem: payload.certificate_pem,
            ca_pem: payload.ca_pem,
            token: payload.token.into(),
            token_expires_at: payload.token_expires_at,
            refresh_token: payload.refresh_token.into(),
        }
    }};
}

macro_rules! specs {
    ($module:ident, $specs:expr) => {{
        let specs = $specs;
        $module::HostSpecsInput {
            arch: specs.arch.to_owned(),
            cpus: i64::from(specs.cpus),
            memory_mib: whole(specs.memory_mib),
            memory_available_mib: whole(specs.memory_available_mib),
            disk_mib: whole(specs.disk_mib),
            disk_available_mib: whole(specs.disk_available_mib),
            vmm: specs.vmm.clone(),
            disk_store: specs.disk_store.clone(),
            agent_version: crate::VERSION.to_owned(),
        }
    }};
}

/// GraphQL's `Int` has 32 bits.
fn whole(value: u64) -> i64 {
    i64::from(i32::try_from(value).unwrap_or(i32::MAX))
}

/// Speaks to one control plane.
#[derive(Clone)]
pub struct ControlClient {
    http: reqwest::Client,
    endpoint: Url,
}

impl ControlClient {
    pub fn new(api_url: &Url) -> Result<Self, ControlError> {
        let http = reqwest::Client::builder()
            .timeout(std::time::Duration::from_secs(20))
            .user_agent(concat!("wrenn-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ControlError::Unreachable)?;
        let mut endpoint = api_url.clone();
        endpoint.set_path(&format!("{}/graphql", api_url.path().trim_end_matches('/')));
        Ok(Self { http, endpoint })
    }

    /// Spends a registration token.
    pub async fn register(
        &self,
        token: &SecretString,
        csr_pem: String,
        address: String,
        specs: &HostSpecs,
    ) -> Result<Issued, ControlError> {
        let variables = register_host::Variables {
            token: token.expose_secret().to_owned(),
            csr_pem,
            address,
            specs: specs!(register_host, specs),
        };
        let data: register_host::ResponseData =
            self.call(&RegisterHost::build_query(variables), None).await?;
        Ok(issued!(data.register_host))
    }

    /// Trades the refresh token for new credentials.
    pub async fn refresh(
        &self,
        refresh_token: &SecretString,
        csr_pem: String,
    ) -> Result<Issued, ControlError> {
        let variables = refresh_host_credentials::Variables {
            refresh_token: refresh_token.expose_secret().to_owned(),
            csr_pem,
        };
        let query = RefreshHostCredentials::build_query(variables);
        let data: refresh_host_credentials::ResponseData = self.call(&query, None).await?;
        Ok(issued!(data.refresh_host_credentials))
    }

    /// Says that this host is there, and answers with its id.
    pub async fn heartbeat(&self, token: &SecretString, specs: &HostSpecs) -> Result<String, ControlError> {
        let variables = host_heartbeat::Variables { specs: specs!(host_heartbeat, specs) };
        let data: host_heartbeat::ResponseData =
            self.call(&HostHeartbeat::build_query(variables), Some(token)).await?;
        Ok(data.host_heartbeat.host.id)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        query: &impl Serialize,
        token: Option<&SecretString>,
    ) -> Result<T, ControlError> {
        let mut request = self.http.post(self.endpoint.clone()).json(query);
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        let response = request.send().await.map_err(ControlError::Unreachable)?;
        let status = response.status().as_u16();
        let body: Response<T> = response.json().await.map_err(ControlError::Unreachable)?;
        if let Some(error) = body.errors.into_iter().flatten().next() {
            let code = error
                .extensions
                .as_ref()
                .and_then(|all| all.get("code"))
                .and_then(|code| code.as_str())
                .unwrap_or("INTERNAL");
            return Err(ControlError::Refused { code: code.to_owned(), message: error.message });
        }
        body.data.ok_or(ControlError::Empty(status))
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;

    /// A control plane that always answers the same.
    async fn answering(answer: Value) -> ControlClient {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let routes = Router::new().route("/graphql", post(async move || Json(answer)));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        ControlClient::new(&url).unwrap()
    }

    fn specs() -> HostSpecs {
        HostSpecs {
            arch: "x86_64",
            cpus: 2,
            memory_mib: u64::MAX,
            memory_available_mib: 1,
            disk_mib: 1,
            disk_available_mib: 1,
            vmm: "qemu/tcg 7.2.22".into(),
            disk_store: "reflink".into(),
        }
    }

    #[tokio::test]
    async fn a_heartbeat_names_the_host() {
        let client = answering(json!({"data": {"hostHeartbeat": {"host": {"id": "host-1"}}}})).await;
        assert_eq!(client.heartbeat(&"token".to_owned().into(), &specs()).await.unwrap(), "host-1");
    }

    #[tokio::test]
    async fn refused_credentials_are_told_from_other_refusals() {
        for (code, denied) in [("UNAUTHENTICATED", true), ("FORBIDDEN", true), ("UNAVAILABLE", false)] {
            let error = json!({"message": "no", "extensions": {"code": code}});
            let client = answering(json!({"data": null, "errors": [error]})).await;
            let error = client.refresh(&"refresh".to_owned().into(), String::new()).await.err().unwrap();
            assert_eq!(error.denies_credentials(), denied, "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_not_a_refusal() {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = ControlClient::new(&Url::parse("http://127.0.0.1:9").unwrap()).unwrap();
        let error = client.heartbeat(&"token".to_owned().into(), &specs()).await.unwrap_err();
        assert!(matches!(error, ControlError::Unreachable(_)), "{error}");
    }
}
