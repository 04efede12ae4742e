//! What people run in capsules: Python's own web server, and Jupyter, both reached from outside.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use wrenn_tests::assets::CODE_INTERPRETER;
use wrenn_tests::graphql::{Client, Exec, Form};
use wrenn_tests::stack::Stack;

use crate::proxy::{header, prefix, said, until_served};

/// Jupyter takes a guest under emulation half a minute of processor time to start, and a kernel as much again, on a machine
/// that has all its time for it.
const PATIENCE: Duration = Duration::from_secs(900);

async fn get(client: &Client, form: Form, id: &str, port: u16, path: &str) -> Result<Response> {
    let answer = client.port_get(form, id, port, path).await?;
    ensure!(said(&answer).is_none(), "{form:?} {path}: {answer:?}");
    Ok(answer)
}

/// Where an answer sends its client, as the server in the guest would have said it.
fn location(answer: &Response, form: Form, id: &str, port: u16) -> Result<String> {
    let location = header(answer, "location")?;
    let inside = location.strip_prefix(&prefix(form, id, port));
    Ok(inside.with_context(|| format!("{form:?}: {location} leads elsewhere"))?.to_owned())
}

pub async fn its_own_server_is_reached_by_name_and_by_path(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({ "template": CODE_INTERPRETER })).await?.id;
    client
        .sh(&id, "mkdir -p '/srv/a b/inner' && cd '/srv/a b' && echo text > file.txt && echo deep > inner/x")
        .await?;
    let server = ["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "/srv"];
    client.start(Exec::argv(&id, &server)).await?;
    until_served(client, &id, 8000, "/", PATIENCE).await?;
    for form in Form::BOTH {
        let get = async |path: &str| get(client, form, &id, 8000, path).await;
        let listing = get("/a%20b/").await?;
        ensure!(listing.status() == StatusCode::OK && header(&listing, "server")?.contains("SimpleHTTP"));
        let listing = listing.text().await?;
        // As relative links they are right below any prefix.
        ensure!(listing.contains("href=\"file.txt\"") && listing.contains("href=\"inner/\""), "{listing}");
        let file = get("/a%20b/file.txt").await?;
        ensure!(header(&file, "content-type")? == "text/plain", "{form:?}: {file:?}");
        ensure!(file.text().await? == "text\n", "{form:?}");

        // A directory without its slash: the same one with it, in the same place and with the same question.
        let redirect = get("/a%20b/inner?c=%20d").await?;
        ensure!(redirect.status() == StatusCode::MOVED_PERMANENTLY, "{form:?}: {redirect:?}");
        let there = location(&redirect, form, &id, 8000)?;
        ensure!(there == "/a%20b/inner/?c=%20d", "{form:?}: {there}");
        let there = get(&there).await?;
        ensure!(there.status() == StatusCode::OK && there.text().await?.contains("href=\"x\""), "{form:?}");

        let missing = get("/a%20b/missing").await?;
        ensure!(missing.status() == StatusCode::NOT_FOUND, "{form:?}: {missing:?}");
        ensure!(missing.text().await?.contains("File not found"), "{form:?}: not what the server says");
        let delete = client.port_request(form, Method::DELETE, &id, 8000, "/")?;
        let delete = delete.header("X-API-Key", client.key().context("a key")?).send().await?;
        ensure!(delete.status() == StatusCode::NOT_IMPLEMENTED, "{form:?}: {delete:?}");
        ensure!(said(&delete).is_none(), "{form:?}: {delete:?}");
    }
    client.destroy(&id).await?;
    Ok(())
}

/// Below a path of its own, so that there is something to be redirected to. Who may reach it is the proxy's decision.
const JUPYTER: &str = "exec jupyter server --allow-root --no-browser --ip=127.0.0.1 --port=8888 \
    --ServerApp.base_url=/lab/ --ServerApp.default_url=/lab/api/kernelspecs --ServerApp.token= \
    --ServerApp.password= --ServerApp.disable_check_xsrf=True --ServerApp.allow_remote_access=True > /tmp/jupyter.log 2>&1";

pub async fn jupyter_runs_cells(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({ "template": CODE_INTERPRETER })).await?.id;
    client.start(Exec::shell(&id, JUPYTER)).await?;
    let outcome = async {
        until_served(client, &id, 8888, "/lab/api", PATIENCE).await?;
        use_jupyter(client, &id).await
    };
    if let Err(error) = outcome.await {
        let log = client.sh(&id, "tail -n 40 /tmp/jupyter.log").await;
        return Err(error.context(format!("Jupyter's last words: {log:?}")));
    }
    client.destroy(&id).await?;
    Ok(())
}

async fn use_jupyter(client: &Client, id: &str) -> Result<()> {
    for form in Form::BOTH {
        let get = async |path: &str| get(client, form, id, 8888, path).await;
        let api: Value = get("/lab/api").await?.json().await?;
        ensure!(api["version"].is_string(), "{form:?}: {api}");
        for path in ["/lab/?a=b", "/lab/api/kernelspecs/?a=b"] {
            let redirect = get(path).await?;
            ensure!(redirect.status() == StatusCode::FOUND, "{form:?} {path}: {redirect:?}");
            let there = location(&redirect, form, id, 8888)?;
            ensure!(there == "/lab/api/kernelspecs?a=b", "{form:?} {path}: {there}");
            let specs: Value = get(&there).await?.json().await?;
            ensure!(specs["default"] == "python3", "{form:?}: {specs}");
        }
    }

    // One kernel, made and used by path, then used by name.
    let make = client.port_request(Form::Path, Method::POST, id, 8888, "/lab/api/kernels")?;
    let make = make.header("X-API-Key", client.key().context("a key")?).json(&json!({ "name": "python3" }));
    let made = make.timeout(PATIENCE).send().await?;
    ensure!(made.status() == StatusCode::CREATED, "{made:?}");
    let kernel = location(&made, Form::Path, id, 8888)?;
    let model: Value = made.json().await?;
    let name = model["id"].as_str().context("a kernel's id")?;
    ensure!(kernel == format!("/lab/api/kernels/{name}"), "{kernel} is not where {model} is");

    let mut by_path = Notebook::open(client, Form::Path, id, &kernel).await?;
    let cell = by_path.run("answer = 6 * 7\nprint('by path:', answer)").await?;
    ensure!(cell == Cell::ok("by path: 42\n", None), "{cell:?}");
    let mut by_name = Notebook::open(client, Form::Name, id, &kernel).await?;
    let cell = by_name.run("print('by name')\nanswer ** 20").await?;
    ensure!(cell == Cell::ok("by name\n", Some("291733167875766667063796853374976")), "{cell:?}");
    let cell = by_path.run("answer / 0").await?;
    ensure!(cell.status == "error" && cell.error == "ZeroDivisionError", "{cell:?}");
    // More than any buffer on the way.
    let cell = by_path.run("print('x' * 1_000_000)").await?;
    ensure!(cell.stdout.trim_end() == "x".repeat(1_000_000), "{} characters came", cell.stdout.len());
    drop((by_path, by_name));

    let end = client.port_request(Form::Name, Method::DELETE, id, 8888, &kernel)?;
    let ended = end.header("X-API-Key", client.key().context("a key")?).send().await?;
    ensure!(ended.status() == StatusCode::NO_CONTENT, "{ended:?}");
    ensure!(get(client, Form::Path, id, 8888, &kernel).await?.status() == StatusCode::NOT_FOUND);
    Ok(())
}

/// What came of one cell.
#[derive(Debug, Default, PartialEq)]
struct Cell {
    status: String,
    stdout: String,
    /// Of the last expression.
    result: Option<String>,
    error: String,
}

impl Cell {
    fn ok(stdout: &str, result: Option<&str>) -> Self {
        let result = result.map(str::to_owned);
        Self { status: "ok".to_owned(), stdout: stdout.to_owned(), result, error: String::new() }
    }
}

/// A connection to a kernel, as a notebook in a browser has it.
struct Notebook {
    socket: WebSocketStream<TcpStream>,
    cells: usize,
}

impl Notebook {
    /// Jupyter takes the connection once the kernel is there.
    async fn open(client: &Client, form: Form, id: &str, kernel: &str) -> Result<Self> {
        let channels = format!("{kernel}/channels?session_id={form:?}");
        let socket = client.port_socket(form, id, 8888, &channels);
        let socket = tokio::time::timeout(PATIENCE, socket).await.context("the kernel does not start")??;
        Ok(Self { socket, cells: 0 })
    }

    /// Runs a cell to its end: the reply has come, and the kernel is idle again.
    async fn run(&mut self, code: &str) -> Result<Cell> {
        tokio::time::timeout(PATIENCE, self.execute(code))
            .await
            .with_context(|| format!("no end of {code}"))?
    }

    async fn execute(&mut self, code: &str) -> Result<Cell> {
        self.cells += 1;
        let number = format!("cell-{}", self.cells);
        let request = json!({
            "channel": "shell",
            "header": {
                "msg_id": number, "msg_type": "execute_request", "username": "", "session": "e2e", "version": "5.3",
                "date": "2026-01-01T00:00:00Z",
            },
            "parent_header": {}, "metadata": {}, "buffers": [],
            "content": {
                "code": code, "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": false,
                "stop_on_error": true,
            },
        });
        self.socket.send(Message::text(request.to_string())).await?;
        let mut cell = Cell::default();
        let mut idle = false;
        while !idle || cell.status.is_empty() {
            let message = self.socket.next().await.context("the socket ended")??;
            // Pings are answered by the library.
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text)?;
            if message["parent_header"]["msg_id"] != number.as_str() {
                continue;
            }
            let content = &message["content"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            match message["msg_type"].as_str().context("a message's type")? {
                "stream" if content["name"] == "stdout" => cell.stdout += &text(&content["text"]),
                "execute_result" => cell.result = Some(text(&content["data"]["text/plain"])),
                "error" => cell.error = text(&content["ename"]),
                "execute_reply" => cell.status = text(&content["status"]),
                "status" => idle = content["execution_state"] == "idle",
                _ => {}
            }
        }
        Ok(cell)
    }
}
