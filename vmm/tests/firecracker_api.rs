//! The client of Firecracker's API against a server that accepts only what the published API description
//! (`firecracker.yaml`, version 1.17) allows, and remembers it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};
use wrenn_vmm::firecracker::api::{
    ApiError, BootSource, CacheType, Drive, EntropyDevice, Firecracker, InstanceState, MachineConfiguration,
    MemoryBackend, MemoryBackendType, MmdsConfig, MmdsVersion, NetworkInterface, NetworkOverride,
    RateLimiter, SnapshotCreate, SnapshotLoad, SnapshotType, TokenBucket,
};

/// Requests: method, path, shape of the body. `*` in a path is an id, which the body's field of the last column
/// must repeat.
const REQUESTS: &[(&str, &str, &str, &str)] = &[
    ("GET", "/", "", ""),
    ("PUT", "/machine-config", "MachineConfiguration", ""),
    ("PUT", "/boot-source", "BootSource", ""),
    ("PUT", "/drives/*", "Drive", "drive_id"),
    ("PUT", "/network-interfaces/*", "NetworkInterface", "iface_id"),
    ("PUT", "/entropy", "EntropyDevice", ""),
    ("PUT", "/mmds/config", "MmdsConfig", ""),
    ("PUT", "/mmds", "Anything", ""),
    ("PUT", "/actions", "InstanceActionInfo", ""),
    ("PATCH", "/vm", "Vm", ""),
    ("PUT", "/snapshot/create", "SnapshotCreateParams", ""),
    ("PUT", "/snapshot/load", "SnapshotLoadParams", ""),
];

/// Definitions: `!` marks a required field; then its type, which may be another definition, `[]` of one, or one
/// of some words.
const DEFINITIONS: &[(&str, &str)] = &[
    (
        "MachineConfiguration",
        "vcpu_count!:integer mem_size_mib!:integer smt:boolean track_dirty_pages:boolean cpu_template:string \
         huge_pages:None|Transparent|2M",
    ),
    ("BootSource", "kernel_image_path!:string initrd_path:string boot_args:string"),
    (
        "Drive",
        "drive_id!:string is_root_device!:boolean is_read_only:boolean path_on_host:string partuuid:string \
         cache_type:Unsafe|Writeback io_engine:Sync|Async rate_limiter:RateLimiter socket:string",
    ),
    (
        "NetworkInterface",
        "iface_id!:string host_dev_name!:string guest_mac:string mtu:integer rx_rate_limiter:RateLimiter \
         tx_rate_limiter:RateLimiter",
    ),
    ("RateLimiter", "bandwidth:TokenBucket ops:TokenBucket"),
    ("TokenBucket", "size!:integer refill_time!:integer one_time_burst:integer"),
    ("EntropyDevice", "rate_limiter:RateLimiter"),
    ("MmdsConfig", "version:V1|V2 network_interfaces!:[]string ipv4_address:string imds_compat:boolean"),
    ("InstanceActionInfo", "action_type!:FlushMetrics|InstanceStart|SendCtrlAltDel"),
    ("Vm", "state!:Paused|Resumed"),
    ("SnapshotCreateParams", "mem_file_path!:string snapshot_path!:string snapshot_type:Full|Diff"),
    (
        "SnapshotLoadParams",
        "snapshot_path!:string mem_backend!:MemoryBackend track_dirty_pages:boolean resume_vm:boolean \
         network_overrides:[]NetworkOverride vsock_override:Anything clock_realtime:boolean",
    ),
    ("MemoryBackend", "backend_type!:File|Uffd backend_path!:string"),
    ("NetworkOverride", "iface_id!:string host_dev_name!:string"),
];

/// Whether a value has a type; what is wrong if not.
fn check(value: &Value, kind: &str) -> Result<(), String> {
    if let Some(element) = kind.strip_prefix("[]") {
        let elements = value.as_array().ok_or(format!("{value} is no list"))?;
        return elements.iter().try_for_each(|value| check(value, element));
    }
    let fits = match kind {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "Anything" => value.is_object(),
        words if words.contains('|') => {
            value.as_str().is_some_and(|value| words.split('|').any(|word| word == value))
        }
        definition => return check_object(value, definition),
    };
    if fits { Ok(()) } else { Err(format!("{value} is not {kind}")) }
}

fn check_object(value: &Value, definition: &str) -> Result<(), String> {
    let (_, fields) = DEFINITIONS.iter().find(|(name, _)| *name == definition).expect("a definition");
    let object = value.as_object().ok_or(format!("{value} is no {definition}"))?;
    let fields: Vec<(&str, &str)> =
        fields.split_ascii_whitespace().map(|field| field.split_once(':').unwrap()).collect();
    for (name, value) in object {
        let field = fields.iter().find(|(field, _)| field.trim_end_matches('!') == name);
        let (_, kind) = field.ok_or(format!("{definition} has no field {name}"))?;
        check(value, kind).map_err(|what| format!("{definition}.{name}: {what}"))?;
    }
    let missing = fields
        .iter()
        .find_map(|(field, _)| field.strip_suffix('!').filter(|required| !object.contains_key(*required)));
    missing.map_or(Ok(()), |required| Err(format!("{definition} needs {required}")))
}

fn check_request(method: &str, path: &str, body: &[u8]) -> Result<Value, String> {
    let (start, last) = path.rsplit_once('/').ok_or("no path")?;
    let (_, _, definition, id) = REQUESTS
        .iter()
        .find(|(allowed, at, ..)| {
            *allowed == method && (*at == path || at.strip_suffix("/*").is_some_and(|at| at == start))
        })
        .ok_or(format!("there is no {method} {path}"))?;
    if definition.is_empty() {
        return if body.is_empty() { Ok(Value::Null) } else { Err("a body without need".to_owned()) };
    }
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    check(&body, definition)?;
    if !id.is_empty() && body[*id] != *last {
        return Err(format!("the path's id is not {id}"));
    }
    Ok(body)
}

type Received = Arc<Mutex<Vec<(String, String, Value)>>>;

/// What the server does with a request that is right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Kind,
    /// Every answer is this.
    Says(&'static str),
    Silent,
}

struct Fake {
    _directory: TempDir,
    client: Firecracker,
    received: Received,
}

impl Fake {
    fn start(manner: Manner) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let received = Received::default();
        let remembered = received.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, remembered.clone(), manner));
            }
        });
        Self { _directory: directory, client: Firecracker::new(socket), received }
    }

    /// The body of the last request, which was this one.
    fn last(&self, method: &str, path: &str) -> Value {
        let (was_method, was_path, body) = self.received.lock().unwrap().pop().expect("a request");
        assert_eq!((was_method.as_str(), was_path.as_str()), (method, path));
        body
    }
}

async fn answer(stream: UnixStream, received: Received, manner: Manner) {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap() == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    // Firecracker's server reads bodies by their length alone.
    let header = |name: &str| {
        let values = head[1..].iter().filter_map(|line| line.split_once(": "));
        values.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let [method, path, "HTTP/1.1"] = head[0].split(' ').collect::<Vec<_>>()[..] else { panic!("{head:?}") };
    let checked = check_request(method, path, &body);
    let answer = match (&checked, manner) {
        (_, Manner::Silent) => return std::future::pending().await,
        (_, Manner::Says(answer)) => answer.to_owned(),
        (Err(fault), _) => response("400 Bad Request", &json!({ "fault_message": fault }).to_string()),
        (Ok(_), _) if method == "GET" => {
            let info =
                r#"{"id":"cl-1","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#;
            response("200 OK", info)
        }
        (Ok(_), _) => "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".to_owned(),
    };
    if let Ok(body) = checked {
        received.lock().unwrap().push((method.to_owned(), path.to_owned(), body));
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    // The connection is kept open, as Firecracker does.
    let _ = stream.read(&mut [0]).await;
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

const WITHIN: Duration = Duration::from_secs(30);

fn load(backend_type: MemoryBackendType) -> SnapshotLoad {
    SnapshotLoad {
        snapshot_path: "/capsule/state".into(),
        mem_backend: MemoryBackend { backend_type, backend_path: "/capsule/memory".into() },
        track_dirty_pages: true,
        resume_vm: true,
        network_overrides: vec![],
    }
}

#[tokio::test]
async fn what_a_boot_needs_is_said_as_published() {
    let fake = Fake::start(Manner::Kind);
    let client = &fake.client;
    let machine = MachineConfiguration { vcpu_count: 2, mem_size_mib: 256, track_dirty_pages: true };
    client.machine_configuration(&machine).await.unwrap();
    let expected = json!({ "vcpu_count": 2, "mem_size_mib": 256, "track_dirty_pages": true });
    assert_eq!(fake.last("PUT", "/machine-config"), expected);

    let boot = BootSource {
        kernel_image_path: "/capsule/vmlinux".into(),
        initrd_path: None,
        boot_args: Some("quiet".into()),
    };
    client.boot_source(&boot).await.unwrap();
    let expected = json!({ "kernel_image_path": "/capsule/vmlinux", "boot_args": "quiet" });
    assert_eq!(fake.last("PUT", "/boot-source"), expected);

    let drive = Drive {
        drive_id: "rootfs".into(),
        path_on_host: "/capsule/rootfs".into(),
        is_root_device: true,
        is_read_only: false,
        cache_type: CacheType::Writeback,
        rate_limiter: None,
    };
    client.drive(&drive).await.unwrap();
    assert_eq!(fake.last("PUT", "/drives/rootfs")["cache_type"], "Writeback");

    let bandwidth = TokenBucket::bytes_per_second(200 << 20, 100 << 20);
    let interface = NetworkInterface {
        iface_id: "eth0".into(),
        host_dev_name: "tap0".into(),
        guest_mac: Some("02:00:00:00:00:01".into()),
        tx_rate_limiter: Some(RateLimiter { bandwidth: Some(bandwidth), ops: None }),
        rx_rate_limiter: None,
    };
    client.network_interface(&interface).await.unwrap();
    let limiter =
        json!({ "bandwidth": { "size": 209715200, "one_time_burst": 104857600, "refill_time": 1000 } });
    assert_eq!(fake.last("PUT", "/network-interfaces/eth0")["tx_rate_limiter"], limiter);

    client.entropy(&EntropyDevice::default()).await.unwrap();
    assert_eq!(fake.last("PUT", "/entropy"), json!({}));
    let mmds = MmdsConfig {
        version: MmdsVersion::V2,
        network_interfaces: vec!["eth0".into()],
        ipv4_address: Some([169, 254, 169, 254].into()),
    };
    client.mmds_config(&mmds).await.unwrap();
    assert_eq!(fake.last("PUT", "/mmds/config")["version"], "V2");
    let content = json!({ "capsule": "cl-1", "template": "tpl-1" });
    client.mmds(content.as_object().unwrap()).await.unwrap();
    assert_eq!(fake.last("PUT", "/mmds"), content);
    client.start().await.unwrap();
    assert_eq!(fake.last("PUT", "/actions"), json!({ "action_type": "InstanceStart" }));
}

#[tokio::test]
async fn what_snapshots_need_is_said_as_published() {
    let fake = Fake::start(Manner::Kind);
    let client = &fake.client;
    client.pause().await.unwrap();
    assert_eq!(fake.last("PATCH", "/vm"), json!({ "state": "Paused" }));
    client.resume().await.unwrap();
    assert_eq!(fake.last("PATCH", "/vm"), json!({ "state": "Resumed" }));

    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Diff,
        snapshot_path: "/capsule/state".into(),
        mem_file_path: "/capsule/memory".into(),
    };
    client.create_snapshot(&create, WITHIN).await.unwrap();
    assert_eq!(fake.last("PUT", "/snapshot/create")["snapshot_type"], "Diff");

    client.load_snapshot(&load(MemoryBackendType::File), WITHIN).await.unwrap();
    let body = fake.last("PUT", "/snapshot/load");
    assert_eq!(body["mem_backend"], json!({ "backend_type": "File", "backend_path": "/capsule/memory" }));
    assert_eq!(body["track_dirty_pages"], true);
    let overrides = vec![NetworkOverride { iface_id: "eth0".into(), host_dev_name: "tap0".into() }];
    let request = SnapshotLoad { network_overrides: overrides, ..load(MemoryBackendType::Uffd) };
    client.load_snapshot(&request, WITHIN).await.unwrap();
    let body = fake.last("PUT", "/snapshot/load");
    assert_eq!(body["mem_backend"]["backend_type"], "Uffd");
    assert_eq!(body["network_overrides"], json!([{ "iface_id": "eth0", "host_dev_name": "tap0" }]));
}

#[tokio::test]
async fn an_instance_describes_itself() {
    let info = Fake::start(Manner::Kind).client.instance_info().await.unwrap();
    assert_eq!((info.state, info.vmm_version.as_str()), (InstanceState::NotStarted, "1.16.1"));
}

#[tokio::test]
async fn a_refusal_carries_firecrackers_own_words() {
    let fault = response("400 Bad Request", r#"{"fault_message":"Invalid vCPU number: 0"}"#);
    let error = Fake::start(Manner::Says(fault.leak())).client.start().await.unwrap_err();
    let expected = "Firecracker refused PUT /actions (400): Invalid vCPU number: 0";
    assert_eq!(error.to_string(), expected);
    // And the words of anything else that answers.
    let other = "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops";
    let error = Fake::start(Manner::Says(other)).client.start().await.unwrap_err();
    assert_eq!(error.to_string(), "Firecracker refused PUT /actions (500): oops");
}

#[tokio::test]
async fn what_is_no_answer_is_an_error() {
    for nonsense in ["", "hello\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"] {
        // The connection ends after it.
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(nonsense.as_bytes()).await.unwrap();
        });
        let error = Firecracker::new(socket).instance_info().await.unwrap_err();
        assert!(
            matches!(error, ApiError::Exchange { .. } | ApiError::Garbage { .. }),
            "{nonsense:?}: {error}"
        );
    }
    let no_info = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let error = Fake::start(Manner::Says(no_info)).client.instance_info().await.unwrap_err();
    assert!(matches!(error, ApiError::Garbage { .. }), "{error}");
    let error = Firecracker::new(Path::new("/nowhere/api.sock")).start().await.unwrap_err();
    assert!(matches!(error, ApiError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_firecracker_that_hangs_is_not_waited_for() {
    let fake = Fake::start(Manner::Silent);
    let hung = fake.client.load_snapshot(&load(MemoryBackendType::Uffd), Duration::from_millis(20)).await;
    assert!(matches!(hung, Err(ApiError::Deadline { .. })), "{hung:?}");
}

#[test]
fn the_fake_refuses_what_is_not_published() {
    let refused = |method: &str, path: &str, body: Value, why: &str| {
        let error = check_request(method, path, body.to_string().as_bytes()).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused("PUT", "/vm", json!({}), "there is no PUT /vm");
    refused("PATCH", "/vm", json!({}), "Vm needs state");
    refused("PATCH", "/vm", json!({ "state": "Running" }), "is not Paused|Resumed");
    refused("PUT", "/drives/a", json!({ "drive_id": "b", "is_root_device": true }), "id is not drive_id");
    refused("PUT", "/entropy", json!({ "limit": 1 }), "has no field limit");
    refused("PUT", "/entropy", json!({ "rate_limiter": { "ops": { "size": 1 } } }), "needs refill_time");
}
