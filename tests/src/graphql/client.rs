//! GraphQL over HTTP.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// One entry of a response's `errors`.
#[derive(Debug, Clone, Deserialize)]
pub struct GraphqlError {
    pub message: String,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Extensions {
    code: Option<String>,
    field: Option<String>,
    cause: Option<String>,
}

impl GraphqlError {
    /// `extensions.code`; empty if the server forgot it.
    pub fn code(&self) -> &str {
        self.extensions.code.as_deref().unwrap_or_default()
    }

    /// `extensions.field`: the input an `INVALID_INPUT` is about.
    pub fn field(&self) -> Option<&str> {
        self.extensions.field.as_deref()
    }

    /// `extensions.cause`: what made a stream break off.
    pub fn cause(&self) -> Option<&str> {
        self.extensions.cause.as_deref()
    }
}

impl fmt::Display for GraphqlError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.code(), self.message)?;
        self.field().map_or(Ok(()), |field| write!(out, " (field {field})"))?;
        self.cause().map_or(Ok(()), |cause| write!(out, " (cause {cause})"))
    }
}

/// A request that was answered with errors; never empty.
#[derive(Debug, Clone)]
pub struct Failure(pub Vec<GraphqlError>);

impl Failure {
    /// The code of what a request failed with, if the server said it.
    pub fn code_of(error: &anyhow::Error) -> Option<&str> {
        error.downcast_ref::<Self>().map(|failure| failure.first().code())
    }

    pub fn first(&self) -> &GraphqlError {
        &self.0[0]
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(GraphqlError::to_string).collect();
        out.write_str(&all.join("; "))
    }
}

impl std::error::Error for Failure {}

#[derive(Deserialize)]
struct Response {
    data: Option<Value>,
    #[serde(default)]
    errors: Vec<GraphqlError>,
    #[serde(default)]
    extensions: Value,
}

/// A caller with one API key (or none).
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// `http://127.0.0.1:PORT`.
    base: String,
    key: Option<String>,
}

impl Client {
    pub fn new(base: impl Into<String>, key: Option<&str>) -> Result<Self> {
        // Whoever came first has installed the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(120))
            .build()
            .context("making an HTTP client")?;
        Ok(Self { http, base: base.into(), key: key.map(str::to_owned) })
    }

    /// The same server with another key, or none.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    pub fn websocket_url(&self) -> String {
        format!("{}/graphql", self.base.replacen("http", "ws", 1))
    }

    /// `data` of the answer. Errors of the server are a [`Failure`] (find it by `downcast_ref`).
    pub async fn run(&self, query: &str, variables: Value) -> Result<Value> {
        self.answered(self.request(query, variables))
            .await?
            .data
            .context("an answer with neither data nor errors")
    }

    /// Where the time of a request went: `extensions.wrenn` of its answer.
    pub async fn timing(&self, query: &str, variables: Value) -> Result<Value> {
        let request = self.request(query, variables).header("X-Wrenn-Timing", "1");
        let mut answer = self.answered(request).await?;
        answer.extensions.get_mut("wrenn").map(Value::take).context("an answer without its timing")
    }

    fn request(&self, query: &str, variables: Value) -> RequestBuilder {
        let request = self
            .http
            .post(format!("{}/graphql", self.base))
            .json(&json!({ "query": query, "variables": variables }));
        match &self.key {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        }
    }

    async fn answered(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.context("sending a GraphQL request")?;
        let status = response.status();
        let text = response.text().await.context("reading a GraphQL answer")?;
        let answer: Response = serde_json::from_str(&text)
            .with_context(|| format!("an answer that is not GraphQL, status {status}: {text:.500}"))?;
        if !answer.errors.is_empty() {
            return Err(Failure(answer.errors).into());
        }
        Ok(answer)
    }

    /// One top-level field of the answer.
    pub async fn get<T: DeserializeOwned>(&self, field: &str, query: &str, variables: Value) -> Result<T> {
        let mut data = self.run(query, variables).await?;
        let value = data.get_mut(field).map(Value::take).unwrap_or_default();
        serde_json::from_value(value).with_context(|| format!("the shape of `{field}`"))
    }

    /// The failure a request is expected to end with.
    pub async fn refused(&self, query: &str, variables: Value) -> Result<Failure> {
        match self.run(query, variables).await {
            Ok(data) => anyhow::bail!("should have been refused, but gave {data}"),
            Err(error) => error.downcast::<Failure>(),
        }
    }
}
