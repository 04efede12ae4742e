//! What `createCapsule` was asked for, checked and with everything filled in.

use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_entities::{
    CapsuleId, HostId,
    capsule::{CapsuleState, Model},
    id::TypedId,
    json::Labels,
    template::{self, TemplateKind},
    time::now,
};
use wrenn_proto::{agent::v1 as agent, envd::v1 as envd};

use super::{mutation::CreateCapsuleInput, rules, state::HOLD};
use crate::{Error, Services, access::Actor, idempotency::Key};

/// An input that was checked, with everything filled in.
pub(super) struct Wanted {
    pub(super) template: template::Model,
    pub(super) name: Option<String>,
    pub(super) vcpus: i32,
    pub(super) memory_mib: i32,
    pub(super) disk_mib: i32,
    pub(super) timeout_sec: i32,
    pub(super) auto_resume: bool,
    pub(super) env: Vec<envd::EnvVar>,
    /// Names of those of `env` that are the capsule's alone.
    pub(super) secret_env: Vec<String>,
    pub(super) labels: Labels,
    pub(super) egress: Option<agent::EgressPolicy>,
    pub(super) key: Option<Key>,
}

/// Checks the input; the template is looked up, what was left out comes from it.
pub(super) async fn check(
    services: &Services,
    actor: &Actor,
    input: CreateCapsuleInput,
) -> Result<Wanted, Error> {
    if let Some(name) = &input.name {
        rules::name("name", name)?;
    }
    let bounded = |field: &str, value: Option<i32>, bounds: &_| {
        value.map(|value| rules::within(field, value, bounds)).transpose()
    };
    let vcpus = bounded("vcpus", input.vcpus, &rules::VCPUS)?;
    let memory_mib = bounded("memoryMib", input.memory_mib, &rules::MEMORY_MIB)?;
    let disk_mib = bounded("diskMib", input.disk_mib, &rules::DISK_MIB)?;
    let timeout_sec = rules::timeout(input.timeout_sec.unwrap_or(0))?;
    let env = input.env.unwrap_or_default();
    rules::env(&env)?;
    let labels = input.labels.unwrap_or_default().0;
    rules::labels(&labels)?;
    let egress = input.egress.map(super::EgressPolicyInput::check).transpose()?;
    let wanted = input.template.as_deref().unwrap_or("minimal");
    let template = crate::template::find(&services.db, actor.team_id, "template", wanted).await?;
    if template.kind == TemplateKind::Snapshot {
        as_the_snapshot_is(&template, vcpus, memory_mib, disk_mib)?;
    }
    let is_secret = |var: &&crate::process::EnvVarInput| var.secret.unwrap_or(false);
    let secret_env = env.iter().filter(is_secret).map(|var| var.name.clone()).collect();
    let own = env.into_iter().map(|var| envd::EnvVar { name: var.name, value: var.value });
    let inherited =
        template.env.0.iter().map(|var| envd::EnvVar { name: var.name.clone(), value: var.value.clone() });
    let mut wanted = Wanted {
        name: input.name,
        vcpus: vcpus.unwrap_or(template.vcpus),
        memory_mib: memory_mib.unwrap_or(template.memory_mib),
        disk_mib: disk_mib.unwrap_or(template.disk_mib),
        timeout_sec,
        auto_resume: input.auto_resume.unwrap_or(false),
        env: inherited.chain(own).collect(),
        secret_env,
        labels: Labels(labels),
        egress,
        key: None,
        template,
    };
    wanted.key = Key::checked(actor.team_id, "createCapsule", input.idempotency_key, || wanted.digest())?;
    Ok(wanted)
}

/// What is in a snapshot's memory cannot be had in another size.
fn as_the_snapshot_is(
    template: &template::Model,
    vcpus: Option<i32>,
    memory_mib: Option<i32>,
    disk_mib: Option<i32>,
) -> Result<(), Error> {
    for (field, given, fixed) in [
        ("vcpus", vcpus, template.vcpus),
        ("memoryMib", memory_mib, template.memory_mib),
        ("diskMib", disk_mib, template.disk_mib),
    ] {
        if given.is_some_and(|given| given != fixed) {
            return Err(Error::invalid(
                field,
                format!("the template is a snapshot with {fixed}; leave `{field}` out"),
            ));
        }
    }
    Ok(())
}

impl Wanted {
    /// The only host that can make it, where there is only one.
    pub(super) fn pinned_to(&self) -> Option<HostId> {
        self.template.host_id
    }

    /// What two requests under one key must have in common.
    fn digest(&self) -> Vec<u8> {
        let env = self.env.iter().map(|var| (&var.name, &var.value)).collect::<Vec<_>>();
        let egress = self.egress.as_ref().map(|policy| (policy.deny_all, &policy.allow, &policy.deny));
        let whole = json!([
            self.template.id.to_string(),
            self.name,
            self.vcpus,
            self.memory_mib,
            self.disk_mib,
            self.timeout_sec,
            env,
            self.secret_env,
            self.labels,
            egress,
            self.auto_resume,
        ]);
        Sha256::digest(whole.to_string().as_bytes()).to_vec()
    }

    pub(super) fn row(&self, actor: &Actor) -> Model {
        let at = now();
        Model {
            id: CapsuleId::generate(),
            team_id: actor.team_id,
            template_id: self.template.id,
            host_id: None,
            parent_id: None,
            fork_id: None,
            name: self.name.clone(),
            state: CapsuleState::Pending,
            generation: 1,
            cause_code: None,
            cause_message: None,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
            timeout_sec: self.timeout_sec,
            auto_resume: self.auto_resume,
            labels: self.labels.clone(),
            created_by: actor.key_id,
            created_at: at,
            updated_at: at,
            started_at: None,
            last_active_at: None,
            operation_until: Some(at + HOLD),
        }
    }
}
