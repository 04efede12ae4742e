//! What a guest is told before anyone is served from it: entropy, the time, who it is, and its token.

use std::time::Duration;

use rand::TryRng;
use tokio::time::Instant;
use wrenn_proto::envd::v1 as envd;
use wrenn_vmm::driver::Machine;

use super::engine::Engine;
use super::error::CapsuleError;
use super::spec::CapsuleSpec;
use crate::clock::now_ns;
use crate::guest::Guest;
use crate::request_id::RequestId;
use crate::token::Token;

/// Fed into the guest's generator after every restore.
const ENTROPY_BYTES: usize = 256;

/// A call that took longer than this may have set a clock that is behind by as much, and is repeated. An emulated
/// guest's first call is slow, as all of its code is translated first; the second one is not.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);
/// How often it is tried: on a host that is too busy the last one stands.
const CLOCK_ATTEMPTS: usize = 3;

/// Makes a machine the capsule of a spec.
pub struct Handover<'a> {
    pub engine: &'a Engine,
    pub spec: &'a CapsuleSpec,
    /// The one that its guest asks for from now on.
    pub token: &'a Token,
    pub request: &'a RequestId,
    /// The machine was not restored: it only stood still.
    pub goes_on: bool,
}

impl Handover<'_> {
    /// `guest` carries the token that the guest asks for until now, if it does. An error means that this machine
    /// must not be served.
    pub async fn run(
        &self,
        guest: Guest,
        machine: &dyn Machine,
        deadline: Instant,
    ) -> Result<Guest, CapsuleError> {
        let mut guest = guest;
        for attempt in 0..CLOCK_ATTEMPTS {
            let sent = Instant::now();
            self.tell(&guest, machine, deadline, self.goes_on || attempt > 0).await?;
            guest = guest.with_token(self.token);
            // The guest set its clock to when this was sent: it is behind by what the way there took.
            if sent.elapsed() <= CLOCK_TOLERANCE {
                break;
            }
        }
        Ok(guest)
    }

    /// Once.
    async fn tell(
        &self,
        guest: &Guest,
        machine: &dyn Machine,
        deadline: Instant,
        goes_on: bool,
    ) -> Result<(), CapsuleError> {
        let within = deadline.saturating_duration_since(Instant::now());
        tokio::select! {
            answer = guest.post_restore(self.message(goes_on)?, self.request, within) => {
                let answer = answer.map_err(CapsuleError::guest("handing the guest its identity"))?;
                tracing::debug!(clock_step_ns = answer.clock_step_ns, "guest reseeded");
                Ok(())
            }
            exit = machine.process().exited() => Err(CapsuleError::VmmDied(exit.to_string())),
        }
    }

    fn message(&self, goes_on: bool) -> Result<envd::PostRestoreRequest, CapsuleError> {
        let mut entropy = vec![0; ENTROPY_BYTES];
        rand::rngs::SysRng
            .try_fill_bytes(&mut entropy)
            .map_err(CapsuleError::step("reading random bytes"))?;
        let spec = self.spec;
        let env =
            spec.env.iter().map(|var| envd::EnvVar { name: var.name.clone(), value: var.value.clone() });
        Ok(envd::PostRestoreRequest {
            entropy: entropy.into(),
            wall_clock_ns: now_ns(),
            identity: Some(envd::Identity {
                capsule_id: spec.id.to_string(),
                template_id: spec.template.to_string(),
                hostname: spec.hostname(),
                machine_id: spec.machine_id(),
            }),
            configuration: Some(envd::ConfigureRequest {
                env: env.collect(),
                default_user: spec.default_user.clone(),
                name_servers: self.engine.name_servers.iter().map(ToString::to_string).collect(),
                token: self.token.bytes().to_vec().into(),
            }),
            goes_on,
        })
    }
}
