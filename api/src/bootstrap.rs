//! The first account of an installation, for `wrenn-api bootstrap`.

use sea_orm::DbErr;
use secrecy::{ExposeSecret, SecretString};
use wrenn_schema::bootstrap::{bootstrap, replace_keys};

use crate::{Config, database};

/// What to make when there is no user yet, and what to call the keys.
#[derive(Clone, Debug, clap::Args)]
pub struct Bootstrap {
    /// Name of the first user, if there is none yet
    #[arg(long, default_value = "admin")]
    pub user_name: String,
    /// Their address
    #[arg(long, default_value = "admin@localhost")]
    pub email: String,
    /// Name of their team
    #[arg(long, default_value = "default")]
    pub team_name: String,
    /// Name of both keys; keys of this name that an earlier run made are replaced
    #[arg(long, default_value = "bootstrap")]
    pub key_name: String,
}

/// What a fresh installation is used with. The keys are shown this once.
#[derive(Debug)]
pub struct Bootstrapped {
    pub team_id: String,
    /// Of the first team.
    pub api_key: SecretString,
    /// Of the platform's team.
    pub admin_key: SecretString,
}

impl Bootstrapped {
    /// One line: `{"teamId","apiKey","adminKey"}`.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "teamId": self.team_id,
            "apiKey": self.api_key.expose_secret(),
            "adminKey": self.admin_key.expose_secret(),
        })
        .to_string()
    }
}

/// Why there is no first account.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("cannot set up the database")]
    Database(#[source] DbErr),
    #[error("cannot make the first user and team")]
    Account(#[source] wrenn_schema::Error),
    #[error("cannot make the keys")]
    Keys(#[source] wrenn_schema::Error),
    #[error("cannot close the database")]
    Close(#[source] DbErr),
}

impl Bootstrap {
    /// Migrates, makes user and team where there is no user, and issues both keys anew.
    ///
    /// # Errors
    /// The step that failed; what was made before it is found again by the next run.
    pub async fn run(&self, config: &Config) -> Result<Bootstrapped, BootstrapError> {
        let url = config.database_url.expose_secret();
        let db = database::open(url).await.map_err(BootstrapError::Database)?;
        bootstrap(&db, &self.user_name, &self.email, &self.team_name)
            .await
            .map_err(BootstrapError::Account)?;
        let keys = replace_keys(&db, &self.key_name).await.map_err(BootstrapError::Keys)?;
        db.close().await.map_err(BootstrapError::Close)?;
        Ok(Bootstrapped { team_id: keys.team_id.to_string(), api_key: keys.team, admin_key: keys.platform })
    }
}
