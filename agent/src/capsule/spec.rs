//! What a capsule is asked to be, checked before anything is made of it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wrenn_proto::agent::v1::CreateCapsuleRequest;
use wrenn_vmm::network::EgressPolicy;
use wrenn_vmm::paths::Name;

use super::error::CapsuleError;
use crate::ids::{CapsuleId, IdError, TeamId, TemplateId};

/// Below this the guest's kernel and daemon do not fit.
const MIN_MEMORY_MIB: u32 = 128;
/// The bound of `ext4` images that this host will make, 2 TiB.
const MAX_DISK_MIB: u32 = 2 << 20;
/// vCPUs a capsule may have on any host, more only where the host has more.
const ALWAYS_ALLOWED_VCPUS: u32 = 8;
const MAX_ENV_BYTES: usize = 128 << 10;

/// Bounds of this host.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_vcpus: u32,
    pub max_memory_mib: u32,
    pub default_disk_mib: u32,
}

impl Limits {
    pub fn of_host(cpus: u32, memory_mib: u64, default_disk_mib: u64) -> Self {
        Self {
            max_vcpus: cpus.max(ALWAYS_ALLOWED_VCPUS),
            max_memory_mib: u32::try_from(memory_mib).unwrap_or(u32::MAX),
            default_disk_mib: u32::try_from(default_disk_mib).unwrap_or(MAX_DISK_MIB),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
}

/// A capsule's part that never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapsuleSpec {
    pub id: CapsuleId,
    pub team: TeamId,
    pub template: TemplateId,
    pub template_team: TeamId,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    pub env: Vec<EnvVar>,
    /// Names of `env` whose values stay with this capsule: no template keeps them, and forks inherit them only if
    /// asked to.
    #[serde(default)]
    pub secret_env: Vec<String>,
    /// `root` if empty.
    pub default_user: String,
    #[serde(default)]
    pub egress: EgressPolicy,
    /// The template is a snapshot with memory, not an image.
    #[serde(default)]
    pub from_snapshot: bool,
    /// The capsule that it is a fork of.
    #[serde(default)]
    pub parent: Option<CapsuleId>,
}

impl CapsuleSpec {
    /// Checks everything that can be checked without looking at the host's files.
    pub fn from_request(request: CreateCapsuleRequest, limits: &Limits) -> Result<Self, CapsuleError> {
        let spec = Self {
            id: parse("id", &request.capsule_id)?,
            team: parse("team", &request.team_id)?,
            template: parse("template", &request.template_id)?,
            template_team: parse("template", &request.template_team_id)?,
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disk_mib: if request.disk_mib == 0 { limits.default_disk_mib } else { request.disk_mib },
            env: request.env.into_iter().map(|var| EnvVar { name: var.name, value: var.value }).collect(),
            secret_env: request.secret_env,
            default_user: request.default_user,
            egress: egress(request.egress.unwrap_or_default())?,
            from_snapshot: request.from_snapshot,
            parent: None,
        };
        within("vcpus", spec.vcpus, 1, limits.max_vcpus)?;
        within("memoryMib", spec.memory_mib, MIN_MEMORY_MIB, limits.max_memory_mib)?;
        within("diskMib", spec.disk_mib, 1, MAX_DISK_MIB)?;
        check_env(&spec.env)?;
        Ok(spec)
    }

    /// The environment without what is secret.
    pub fn public_env(&self) -> Vec<EnvVar> {
        self.env.iter().filter(|var| !self.secret_env.contains(&var.name)).cloned().collect()
    }

    /// The capsule's id as a name of files.
    pub fn name(&self) -> Name {
        name(self.id)
    }

    /// For the guest's `/etc/machine-id`: the id's own 16 bytes, in hexadecimal.
    pub fn machine_id(&self) -> String {
        format!("{:032x}", self.id.as_u128())
    }

    /// The guest's host name.
    pub fn hostname(&self) -> String {
        self.id.to_string()
    }
}

/// An id as a name of files: what it is made of is within what a name may be.
pub fn name(id: impl std::fmt::Display) -> Name {
    Name::from_str(&id.to_string()).expect("an id is a prefix and 25 of 0-9a-z")
}

fn parse<T: FromStr<Err = IdError>>(field: &'static str, text: &str) -> Result<T, CapsuleError> {
    text.parse().map_err(|error: IdError| CapsuleError::Invalid { field, message: error.to_string() })
}

/// The id of a request's capsule.
pub fn parse_capsule_id(text: &str) -> Result<CapsuleId, CapsuleError> {
    parse("id", text)
}

/// The id of a request's template.
pub fn parse_template_id(text: &str) -> Result<TemplateId, CapsuleError> {
    parse("template", text)
}

/// The id of the team that a request's template is of.
pub fn parse_team_id(text: &str) -> Result<TeamId, CapsuleError> {
    parse("team", text)
}

fn within(field: &'static str, value: u32, least: u32, most: u32) -> Result<(), CapsuleError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(CapsuleError::Invalid {
        field,
        message: format!("{field} must be from {least} to {most} here, not {value}"),
    })
}

fn egress(policy: wrenn_proto::agent::v1::EgressPolicy) -> Result<EgressPolicy, CapsuleError> {
    EgressPolicy::new(policy.deny_all, &policy.allow, &policy.deny)
        .map_err(|error| CapsuleError::Invalid { field: "egress", message: error.to_string() })
}

fn check_env(env: &[EnvVar]) -> Result<(), CapsuleError> {
    let invalid = |message: String| Err(CapsuleError::Invalid { field: "env", message });
    if env.iter().map(|var| var.name.len() + var.value.len() + 2).sum::<usize>() > MAX_ENV_BYTES {
        return invalid(format!("the environment is larger than {MAX_ENV_BYTES} bytes"));
    }
    for var in env {
        if var.name.is_empty() || var.name.contains(['=', '\0']) || var.value.contains('\0') {
            return invalid(format!("`{}` is not a variable that can be set", var.name.escape_debug()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wrenn_proto::envd::v1 as envd;

    use super::*;

    const LIMITS: Limits = Limits { max_vcpus: 8, max_memory_mib: 4096, default_disk_mib: 5120 };

    fn request() -> CreateCapsuleRequest {
        CreateCapsuleRequest {
            capsule_id: CapsuleId::from_u128(1).to_string(),
            team_id: TeamId::from_u128(2).to_string(),
            template_id: TemplateId::from_u128(0).to_string(),
            template_team_id: TeamId::from_u128(0).to_string(),
            vcpus: 1,
            memory_mib: 256,
            ..Default::default()
        }
    }

    fn field(change: impl FnOnce(&mut CreateCapsuleRequest)) -> &'static str {
        let mut request = request();
        change(&mut request);
        match CapsuleSpec::from_request(request, &LIMITS) {
            Err(CapsuleError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sound_request_gets_the_default_disk() {
        assert_eq!(CapsuleSpec::from_request(request(), &LIMITS).unwrap().disk_mib, 5120);
    }

    #[test]
    fn a_fork_is_its_parent_but_for_its_name_and_secrets() {
        let var = |name: &str| envd::EnvVar { name: name.into(), value: "x".into() };
        let request = CreateCapsuleRequest {
            env: vec![var("PUBLIC"), var("SECRET")],
            secret_env: vec!["SECRET".into()],
            ..request()
        };
        let parent = CapsuleSpec::from_request(request, &LIMITS).unwrap();
        let child = parent.of_fork(CapsuleId::from_u128(9), false);
        assert_eq!((child.id, child.parent), (CapsuleId::from_u128(9), Some(parent.id)));
        assert_eq!(child.env.iter().map(|var| var.name.as_str()).collect::<Vec<_>>(), ["PUBLIC"]);
        let child = parent.of_fork(CapsuleId::from_u128(9), true);
        assert_eq!(child.env, parent.env);
        assert_eq!(child.of_fork(CapsuleId::from_u128(10), false).env.len(), 1, "it is still a secret");
    }

    #[test]
    fn each_wrong_value_names_its_field() {
        assert_eq!(field(|r| r.capsule_id = r.team_id.clone()), "id");
        assert_eq!(field(|r| r.template_id = "../minimal".into()), "template");
        assert_eq!(field(|r| r.vcpus = 0), "vcpus");
        assert_eq!(field(|r| r.vcpus = 9), "vcpus");
        assert_eq!(field(|r| r.memory_mib = 1 << 20), "memoryMib");
        assert_eq!(field(|r| r.memory_mib = 127), "memoryMib");
        assert_eq!(field(|r| r.disk_mib = u32::MAX), "diskMib");
        assert_eq!(field(|r| r.egress.get_or_insert_default().deny.push("10.0.0.1/8".into())), "egress");
        assert_eq!(field(|r| r.env = vec![envd::EnvVar { name: "A=B".into(), value: String::new() }]), "env");
    }
}
