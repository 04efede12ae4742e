//! One installation: a fresh database, the services on it, and as many hosts as a test wants.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_graphql::{Request, Response, ServerError, Value, Variables};
use futures_util::{Stream, StreamExt};
use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseConnection, EntityTrait, IntoActiveModel, Set};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use wrenn_entities::{
    ApiKeyId, CapsuleId, HostId, TeamId, TemplateId, api_key,
    capsule::{self, CapsuleState},
    id::TypedId,
    json::Labels,
    team,
    time::now,
};
use wrenn_migration::{Migrator, MigratorTrait};
use wrenn_schema::{
    SchemaConfig, Services, WrennSchema,
    access::{Caller, Credentials, RequestId, authenticate, request_data},
    bootstrap::{bootstrap, replace_keys},
    database, schema,
};

pub use crate::agent::PATIENCE;
use crate::agent::{ControlPlane, PlayedAgent};

pub struct World {
    pub services: Arc<Services>,
    pub schema: WrennSchema,
    pub db: DatabaseConnection,
    pub team: TeamId,
    pub key: SecretString,
    pub admin: SecretString,
    statements: Arc<Mutex<Vec<String>>>,
    // Removed when the world is.
    directory: TempDir,
    postgres: Option<(DatabaseConnection, String)>,
}

impl World {
    pub async fn on_sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("wrenn.db").display());
        Self::on(&url, directory, None).await
    }

    /// In a database of its own, next to the one that is given. Without one the test fails: it could not run.
    pub async fn on_postgres() -> Self {
        let url = std::env::var("WRENN_TEST_POSTGRES_URL").expect(
            "NOT TESTED ON POSTGRES: set WRENN_TEST_POSTGRES_URL=postgres://user@host/database (`make test` does), \
             or run the tests named `sqlite` alone",
        );
        let name = format!("wrenn_schema_{}", uuid::Uuid::now_v7().simple());
        let server = database::connect(&url).await.expect("reaches the server");
        server.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("makes a database");
        let (base, _) = url.rsplit_once('/').expect("a URL with a database name");
        let directory = tempfile::tempdir().expect("a directory");
        Self::on(&format!("{base}/{name}"), directory, Some((server, name.clone()))).await
    }

    async fn on(url: &str, directory: TempDir, postgres: Option<(DatabaseConnection, String)>) -> Self {
        let mut db = database::connect(url).await.expect("opens the database");
        let statements = Arc::new(Mutex::new(Vec::new()));
        db.set_metric_callback({
            let statements = statements.clone();
            move |info| {
                statements.lock().expect("nobody panics here").push(info.statement.sql.clone());
            }
        });
        Migrator::up(&db, None).await.expect("migrates");
        assert!(bootstrap(&db, "Ada", "ada@example.org", "First").await.expect("bootstraps"));
        let keys = replace_keys(&db, "test").await.expect("issues keys");
        let services = Services::start(SchemaConfig::new(directory.path()), db.clone())
            .await
            .expect("the services start");
        Self {
            schema: schema(services.clone()),
            services,
            db,
            team: keys.team_id,
            key: keys.team,
            admin: keys.platform,
            statements,
            directory,
            postgres,
        }
    }

    pub async fn end(self) {
        self.services.shutdown().await;
        drop(self.schema);
        self.db.close().await.expect("closes the database");
        if let Some((server, name)) = self.postgres {
            server
                .execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)"))
                .await
                .expect("removes the database");
        }
        self.directory.close().expect("removes the directory");
    }

    /// Another control plane on the same database, as after a restart.
    pub async fn another(&self) -> Arc<Services> {
        Services::start(SchemaConfig::new(self.directory.path()), self.db.clone())
            .await
            .expect("starts again")
    }

    /// What was read from the database since the last time. (That a key was used is written aside, at any time.)
    pub fn reads(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.statements.lock().expect("nobody panics here"));
        all.into_iter().filter(|sql| sql.starts_with("SELECT")).collect()
    }

    /// A second team, and its key.
    pub async fn other_team(&self) -> (TeamId, SecretString) {
        let id = TeamId::generate();
        team::ActiveModel {
            id: Set(id),
            name: Set("Other".into()),
            slug: Set("aaaaaa-bbbbbb".into()),
            created_at: Set(now()),
            deleted_at: Set(None),
        }
        .insert(&self.db)
        .await
        .expect("makes a team");
        let secret = "wrn_0123456789abcdefghijklmnopqrstuv";
        api_key::ActiveModel {
            id: Set(ApiKeyId::generate()),
            team_id: Set(id),
            name: Set("other".into()),
            prefix: Set("wrn_01234567".into()),
            digest: Set(Sha256::digest(secret).to_vec()),
            created_by: Set(None),
            created_at: Set(now()),
            last_used_at: Set(None),
            expires_at: Set(None),
        }
        .insert(&self.db)
        .await
        .expect("makes a key");
        (id, secret.into())
    }

    pub async fn request(
        &self,
        secret: Option<&SecretString>,
        query: &str,
        variables: serde_json::Value,
    ) -> Request {
        let caller = match secret {
            None => Caller::Anonymous,
            Some(secret) if secret.expose_secret().starts_with("wrn_") => {
                let credentials = Credentials { api_key: Some(secret.clone()), bearer: None };
                authenticate(&self.services, &credentials).await.expect("the key is accepted")
            }
            Some(secret) => {
                let credentials = Credentials { api_key: None, bearer: Some(secret.clone()) };
                authenticate(&self.services, &credentials).await.expect("the token is accepted")
            }
        };
        let request = Request::new(query).variables(Variables::from_json(variables));
        request_data(&self.services, request, caller, RequestId("test-request".into()))
    }

    pub async fn execute(
        &self,
        secret: Option<&SecretString>,
        query: &str,
        variables: serde_json::Value,
    ) -> Response {
        let request = self.request(secret, query, variables).await;
        self.schema.execute(request).await
    }

    /// With the team's key; has to succeed.
    pub async fn ask(&self, query: &str, variables: serde_json::Value) -> serde_json::Value {
        let response = self.execute(Some(&self.key), query, variables).await;
        assert!(response.errors.is_empty(), "{query}: {:?}", response.errors);
        response.data.into_json().expect("is JSON")
    }

    /// With the team's key; has to fail.
    pub async fn refused(&self, query: &str, variables: serde_json::Value) -> Refused {
        refused(self.execute(Some(&self.key), query, variables).await)
    }

    pub async fn subscribe(
        &self,
        query: &str,
        variables: serde_json::Value,
    ) -> impl Stream<Item = Response> + use<> {
        let request = self.request(Some(&self.key), query, variables).await;
        self.schema.execute_stream(request)
    }

    /// A host with 4 processors, 8 GiB and 100 GiB, whose agent runs.
    pub async fn host(&self, name: &str) -> PlayedAgent {
        self.host_with(name, 8192).await
    }

    pub async fn host_with(&self, name: &str, memory_mib: i32) -> PlayedAgent {
        PlayedAgent::register(self, name, memory_mib).await
    }

    pub async fn create(&self) -> CapsuleId {
        let made = self.ask(CREATE, json!({"input": {}})).await;
        assert_eq!(made["createCapsule"]["capsule"]["state"], "RUNNING");
        id_of(&made["createCapsule"]["capsule"])
    }

    pub async fn row(&self, id: CapsuleId) -> capsule::Model {
        capsule::Entity::find_by_id(id).one(&self.db).await.expect("reads").expect("is there")
    }

    pub async fn rows(&self) -> Vec<capsule::Model> {
        capsule::Entity::find().all(&self.db).await.expect("reads")
    }

    /// A row as an operation that was cut off would leave it.
    pub async fn plant(&self, state: CapsuleState, host: Option<HostId>) -> CapsuleId {
        self.plant_held(state, host, Some(now() - chrono::TimeDelta::seconds(1))).await
    }

    pub async fn plant_held(
        &self,
        state: CapsuleState,
        host: Option<HostId>,
        operation_until: Option<chrono::DateTime<chrono::Utc>>,
    ) -> CapsuleId {
        let row = capsule::Model {
            id: CapsuleId::generate(),
            team_id: self.team,
            template_id: TemplateId::MINIMAL,
            host_id: host,
            parent_id: None,
            fork_id: None,
            name: None,
            state,
            generation: 1,
            cause_code: None,
            cause_message: None,
            vcpus: 1,
            memory_mib: 256,
            disk_mib: 1024,
            timeout_sec: 0,
            auto_resume: false,
            labels: Labels::default(),
            created_by: None,
            created_at: now(),
            updated_at: now(),
            started_at: (!matches!(state, CapsuleState::Pending | CapsuleState::Starting)).then(now),
            last_active_at: None,
            operation_until,
        };
        row.into_active_model().reset_all().insert(&self.db).await.expect("plants a row").id
    }

    /// Waits until the row is in the state.
    pub async fn until(&self, id: CapsuleId, state: CapsuleState) -> capsule::Model {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let row = self.row(id).await;
            if row.state == state {
                return row;
            }
            assert!(Instant::now() < deadline, "{id} is {:?}, not {state:?}: {row:?}", row.state);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl ControlPlane for World {
    async fn carry_out(
        &self,
        as_platform: bool,
        query: &str,
        variables: serde_json::Value,
    ) -> serde_json::Value {
        let response = self.execute(as_platform.then_some(&self.admin), query, variables).await;
        assert!(response.errors.is_empty(), "{query}: {:?}", response.errors);
        response.data.into_json().expect("is JSON")
    }
}

pub const CREATE: &str = "mutation($input: CreateCapsuleInput!) { createCapsule(input: $input) { capsule { id state name cause { code message } } } }";

pub fn id_of(capsule: &serde_json::Value) -> CapsuleId {
    capsule["id"].as_str().expect("an id").parse().expect("a capsule's id")
}

/// What a client sees of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: String,
    pub field: Option<String>,
    pub cause: Option<String>,
    pub message: String,
}

impl Refused {
    pub fn of(error: &ServerError) -> Self {
        let extension = |name| match error.extensions.as_ref()?.get(name)? {
            Value::String(text) => Some(text.clone()),
            other => panic!("{name} is {other}"),
        };
        Self {
            code: extension("code").unwrap_or_else(|| panic!("no code: {error:?}")),
            field: extension("field"),
            cause: extension("cause"),
            message: error.message.clone(),
        }
    }

    /// Code and field.
    pub fn brief(&self) -> (&str, Option<&str>) {
        (&self.code, self.field.as_deref())
    }
}

pub fn refused(response: Response) -> Refused {
    assert_eq!(response.errors.len(), 1, "one error is wanted: {response:?}");
    Refused::of(&response.errors[0])
}

/// The next item of a subscription, or a failure.
pub async fn next(stream: &mut (impl Stream<Item = Response> + Unpin)) -> Option<Response> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("something comes in time")
}

/// The data of the next item, which has to have some.
pub async fn next_data(stream: &mut (impl Stream<Item = Response> + Unpin)) -> serde_json::Value {
    let response = next(stream).await.expect("the subscription goes on");
    assert!(response.errors.is_empty(), "{:?}", response.errors);
    response.data.into_json().expect("is JSON")
}
