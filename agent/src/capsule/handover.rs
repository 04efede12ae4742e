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
use crate::guest::{Guest, GuestError};
use crate::request_id::RequestId;
use crate::token::Token;

/// Fed into the guest's generator after every restore.
const ENTROPY_BYTES: usize = 256;

/// How far a guest's clock may be from the host's, nanoseconds.
const CLOCK_TOLERANCE_NS: i64 = 5_000_000;
/// How often it is stepped: on a host that is too busy the last one stands.
const CLOCK_STEPS: usize = 3;

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
        let told = async {
            let answer = guest
                .post_restore(self.message()?, self.request, left(deadline))
                .await
                .map_err(CapsuleError::guest("handing the guest its identity"))?;
            let behind_ns = now_ns().saturating_sub(answer.wall_clock_ns);
            tracing::debug!(clock_step_ns = answer.clock_step_ns, behind_ns, "guest reseeded");
            let guest = guest.with_token(self.token);
            // Daemons in the memory of older snapshots do not tell.
            if answer.wall_clock_ns != 0 {
                self.set_clock_right(&guest, behind_ns, deadline)
                    .await
                    .map_err(CapsuleError::guest("setting the guest's clock"))?;
            }
            Ok(guest)
        };
        tokio::select! {
            told = told => told,
            exit = machine.process().exited() => Err(CapsuleError::VmmDied(exit.to_string())),
        }
    }

    /// The guest set its clock to when the call was sent: it is behind by what the way there took. An emulated guest's first
    /// call is slow, as all of its code is translated first.
    async fn set_clock_right(
        &self,
        guest: &Guest,
        mut behind_ns: i64,
        deadline: Instant,
    ) -> Result<(), GuestError> {
        for _ in 0..CLOCK_STEPS {
            if behind_ns.saturating_abs() <= CLOCK_TOLERANCE_NS {
                break;
            }
            let reading = guest.step_clock(behind_ns, self.request, left(deadline)).await?;
            if reading.behind_ns.saturating_abs() <= reading.margin_ns {
                break;
            }
            behind_ns = reading.behind_ns;
        }
        Ok(())
    }

    fn message(&self) -> Result<envd::PostRestoreRequest, CapsuleError> {
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
            goes_on: self.goes_on,
        })
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
