//! What a proxy into capsules goes by: which port a request is for, who may reach it, and the connection to its host.
//!
//! The proxy itself carries HTTP and is no part of the schema.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use wrenn_entities::{CapsuleId, HostId, capsule::CapsuleState};

pub use super::url::TOKEN;
use super::{route::Route, url, wake::wake, withdrawal::withdrawn};
pub use crate::host::HostStream;
use crate::{
    Error, Services,
    access::{Actor, Caller, Credentials, RequestId, authenticate, signer},
    capsule::state,
    error::parse_id,
    key, secret,
    signing::{Grant, Signed},
};

/// How long the database may take to say where a capsule is.
const LOOK_UP: Duration = Duration::from_secs(10);

/// A port of a capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub(super) capsule: CapsuleId,
    pub(super) port: u16,
}

impl Target {
    /// # Errors
    /// What is no capsule's id, no port, or a port that is not for others.
    pub fn parse(capsule: &str, port: &str) -> Result<Self, Error> {
        let capsule = parse_id("capsule", capsule)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        // What does not fit is as wrong as what is too large.
        let number = port.parse().ok().filter(|_| digits).unwrap_or(i32::MAX);
        Ok(Self { capsule, port: url::port("port", number)? })
    }

    #[must_use]
    pub fn capsule(&self) -> String {
        self.capsule.to_string()
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same capsule's other port, if that is one for others.
    #[must_use]
    pub fn beside(&self, port: u16) -> Option<Self> {
        url::port("port", port.into()).ok().map(|port| Self { port, ..*self })
    }
}

/// What a visitor shows. Only what is ours: everything else is between them and the capsule.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub api_key: Option<SecretString>,
    /// Of a preview URL, or of the cookie that it left.
    pub token: Option<SecretString>,
}

/// Whether a text is a secret of ours, of whatever kind: none of them is passed on to a capsule.
#[must_use]
pub fn is_ours(secret: &str) -> bool {
    [key::PREFIX, "wrnhost_", "wrnreg_", "wrnrefresh_"].iter().any(|prefix| secret.starts_with(prefix))
}

/// By what somebody was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Public,
    Key,
    /// Good until then.
    Token(DateTime<Utc>),
}

/// A visitor who was let in.
#[derive(Clone, Debug)]
pub struct Admission {
    pub by: Pass,
    route: Arc<Route>,
    target: Target,
    actor: Actor,
    caller: Caller,
}

/// Decides whether a request may go to the port. A wrong key or token is never overlooked.
///
/// # Errors
/// `UNAUTHENTICATED` where nothing good was shown, also for a capsule that is not there; `NOT_FOUND` for one that is not
/// there, or another team's, where something was.
pub async fn admit(
    services: &Services,
    target: Target,
    shown: &Shown,
    request_id: &RequestId,
) -> Result<Admission, Error> {
    let caller = match (&shown.api_key, &shown.token) {
        (Some(api_key), _) => {
            let credentials = Credentials { api_key: Some(api_key.clone()), bearer: None };
            Some((authenticate(services, &credentials).await?, Pass::Key))
        }
        (None, Some(token)) => {
            let grant = Grant::Port { capsule: target.capsule, port: target.port };
            let (caller, signed) = signed(services, grant, token).await?;
            Some((caller, Pass::Token(signed.expires_at)))
        }
        (None, None) => None,
    };
    let reading = services.routes.get(&services.db, target.capsule);
    let route = tokio::time::timeout(LOOK_UP, reading)
        .await
        .map_err(|_| Error::unavailable("the database did not answer in time"))??;
    let absent = || Error::not_found(format!("there is no capsule {}", target.capsule));
    match (route, caller) {
        (Some(route), Some((Caller::Key(key), by))) if key.team_id == route.team_id => {
            let caller = Caller::Key(key);
            let actor = Actor::new(&caller, request_id)?;
            Ok(Admission { by, route, target, actor, caller })
        }
        (Some(route), _) if route.is_public(target.port) => {
            let actor = Actor::visitor(route.team_id, request_id);
            Ok(Admission { by: Pass::Public, route, target, actor, caller: Caller::Anonymous })
        }
        (_, Some(_)) => Err(absent()),
        (_, None) => Err(Error::unauthenticated(
            "this port is not public: an API key is wanted, in the header X-API-Key, or the URL of a preview",
        )),
    }
}

/// The key that signed the token, if that opens the grant.
pub(crate) async fn signed(
    services: &Services,
    grant: Grant<'_>,
    token: &SecretString,
) -> Result<(Caller, Signed), Error> {
    let signed = services.url_key.verify(grant, token.expose_secret())?;
    let caller = signer(services, signed.by, secret::digest(token.expose_secret())).await?;
    Ok((caller, signed))
}

impl Admission {
    /// The host to ask, as text that [`dial`] takes. A capsule that is paused goes on first, if it was made to do that.
    pub async fn host(&self, services: &Arc<Services>) -> Result<String, Error> {
        if let Some(host) = self.route.live() {
            return Ok(host.to_string());
        }
        match self.route.state {
            CapsuleState::Resuming => {}
            CapsuleState::Paused | CapsuleState::Pausing if self.route.auto_resume => {}
            _ => return Err(self.unfit()),
        }
        wake(services, &self.actor, self.target.capsule, false).await?;
        self.find(services).await
    }

    /// The same after the host has said that the capsule is paused, or that it has no such capsule.
    pub async fn host_again(&self, services: &Arc<Services>) -> Result<String, Error> {
        if !self.route.auto_resume {
            services.routes.forget(self.target.capsule);
            return Err(paused(self.target.capsule));
        }
        wake(services, &self.actor, self.target.capsule, true).await?;
        self.find(services).await
    }

    /// Returns, with the reason, once this visitor would not be let in any more: for what goes on after that was
    /// decided.
    pub fn withdrawn(&self, services: &Arc<Services>) -> impl Future<Output = Error> + Send + use<> {
        withdrawn(services.clone(), self.target, self.by, self.caller.clone())
    }

    async fn find(&self, services: &Services) -> Result<String, Error> {
        services.routes.forget(self.target.capsule);
        let route = services.routes.get(&services.db, self.target.capsule).await?;
        let host = route.and_then(|route| route.live()).ok_or_else(|| state::lost(self.target.capsule))?;
        Ok(host.to_string())
    }

    fn unfit(&self) -> Error {
        match self.route.state {
            CapsuleState::Paused => paused(self.target.capsule),
            state => state::unfit_in(self.target.capsule, state, None),
        }
    }
}

fn paused(id: CapsuleId) -> Error {
    Error::failed_precondition(format!("the capsule {id} is paused; resume it first"))
        .with_cause("CAPSULE_PAUSED")
}

/// Forgets where a capsule is: its host has said that it is not there.
pub fn forget(services: &Services, target: Target) {
    services.routes.forget(target.capsule);
}

/// A new connection to the proxy of a host, which speaks HTTP/1.1.
///
/// # Errors
/// `UNAVAILABLE` where the host is out of reach.
pub async fn dial(services: &Services, host: &str) -> Result<HostStream, Error> {
    let host: HostId = parse_id("host", host)?;
    services.hosts.dial(host).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn targets_are_a_capsule_and_a_port_for_others() {
        let id = "cl-0000000000000000000000000";
        let target = Target::parse(id, "3000").expect("is one");
        assert_eq!((target.capsule().as_str(), target.port()), (id, 3000));
        assert_eq!(target.beside(80).map(|beside| beside.port()), Some(80));
        assert_eq!(target.beside(49_983), None);
        for (capsule, port, code) in [
            ("tpl-1", "80", Code::InvalidInput),
            (id, "", Code::InvalidInput),
            (id, "0", Code::InvalidInput),
            (id, "+80", Code::InvalidInput),
            (id, "65536", Code::InvalidInput),
            (id, "99999999999", Code::InvalidInput),
            (id, "49983", Code::Forbidden),
        ] {
            assert_eq!(Target::parse(capsule, port).map_err(|error| error.code()), Err(code), "{port}");
        }
    }

    #[test]
    fn secrets_of_ours_are_told_from_others() {
        for ours in ["wrn_abc", "wrnhost_abc"] {
            assert!(is_ours(ours));
        }
        for other in ["token abc", "sk-1", "", "wrn"] {
            assert!(!is_ours(other));
        }
    }
}
