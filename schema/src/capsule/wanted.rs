//! What `createCapsule` was asked for, checked and with everything filled in.

use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_entities::{
    CapsuleId,
    capsule::{CapsuleState, Model},
    id::TypedId,
    json::Labels,
    template::{self, TemplateKind},
    time::now,
};
use wrenn_proto::envd::v1 as envd;

use super::{mutation::CreateCapsuleInput, rules, state::HOLD};
use crate::{Error, Services, access::Actor};

/// An input that was checked, with everything filled in.
pub(super) struct Wanted {
    pub(super) template: template::Model,
    pub(super) name: Option<String>,
    pub(super) vcpus: i32,
    pub(super) memory_mib: i32,
    pub(super) disk_mib: i32,
    pub(super) timeout_sec: i32,
    pub(super) env: Vec<envd::EnvVar>,
    pub(super) labels: Labels,
    pub(super) idempotency_key: Option<String>,
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
    if let Some(key) = &input.idempotency_key {
        rules::idempotency_key(key)?;
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
    let wanted = input.template.as_deref().unwrap_or("minimal");
    let template = crate::template::find(&services.db, actor.team_id, "template", wanted).await?;
    if template.kind == TemplateKind::Snapshot {
        for (field, given, fixed) in
            [("vcpus", vcpus, template.vcpus), ("memoryMib", memory_mib, template.memory_mib)]
        {
            if given.is_some_and(|given| given != fixed) {
                return Err(Error::invalid(
                    field,
                    format!("the template has {fixed} in its memory; leave `{field}` out"),
                ));
            }
        }
    }
    let own = env.into_iter().map(|var| envd::EnvVar { name: var.name, value: var.value });
    let inherited =
        template.env.0.iter().map(|var| envd::EnvVar { name: var.name.clone(), value: var.value.clone() });
    Ok(Wanted {
        name: input.name,
        vcpus: vcpus.unwrap_or(template.vcpus),
        memory_mib: memory_mib.unwrap_or(template.memory_mib),
        disk_mib: disk_mib.unwrap_or(template.disk_mib),
        timeout_sec,
        env: inherited.chain(own).collect(),
        labels: Labels(labels),
        idempotency_key: input.idempotency_key,
        template,
    })
}

impl Wanted {
    /// What two requests under one key must have in common.
    pub(super) fn digest(&self) -> Vec<u8> {
        let env = self.env.iter().map(|var| (&var.name, &var.value)).collect::<Vec<_>>();
        let whole = json!([
            self.template.id.to_string(),
            self.name,
            self.vcpus,
            self.memory_mib,
            self.disk_mib,
            self.timeout_sec,
            env,
            self.labels,
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
            name: self.name.clone(),
            state: CapsuleState::Pending,
            generation: 1,
            cause_code: None,
            cause_message: None,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
            timeout_sec: self.timeout_sec,
            labels: self.labels.clone(),
            created_by: Some(actor.key_id),
            created_at: at,
            updated_at: at,
            started_at: None,
            last_active_at: None,
            operation_until: Some(at + HOLD),
        }
    }
}
