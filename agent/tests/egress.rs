//! Egress policies from inside real guests. The outside is a network namespace with a name server and a service.

#[expect(dead_code, reason = "shared with tests that want more of it")]
mod support;

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use nix::sched::{CloneFlags, setns, unshare};
use tonic::Code;
use tonic::transport::Channel;
use wrenn_agent::ids::{CapsuleId, TeamId, TemplateId};
use wrenn_proto::FIELD;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::agent_client::AgentClient;
use wrenn_proto::envd::v1 as envd;
use wrenn_proto::envd::v1::process_event::Event;

const NAME_SERVER: &str = "198.18.1.53";
const ALLOWED: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 11);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Lasts as long as the process: its services are threads of it.
fn make_outside() {
    let inside = || {
        let host = File::open("/proc/self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip(&format!("link add up0 type veth peer name wt-agent netns {}", std::process::id()));
        for arguments in [
            "link set lo up",
            "addr add 198.18.0.2/30 dev up0",
            "link set up0 up",
            "route add default via 198.18.0.1",
            "route add local 198.18.1.0/24 dev lo",
        ] {
            ip(arguments);
        }
        let names = UdpSocket::bind((NAME_SERVER, 53)).unwrap();
        let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        thread::spawn(move || answer(&names));
        thread::spawn(move || {
            for stream in service.incoming() {
                let _gone = stream.and_then(|mut stream| stream.write_all(b"here"));
            }
        });
        setns(host.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        ip("addr add 198.18.0.1/30 dev wt-agent");
        ip("link set wt-agent up");
        ip("route add 198.18.1.0/24 via 198.18.0.2 dev wt-agent");
    };
    thread::spawn(inside).join().unwrap();
}

fn answer(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let query = question.queries[0].clone();
        let address = if query.name().to_ascii() == "www.example.com." { ALLOWED } else { OTHER };
        let mut answer = Message::error_msg(question.metadata.id, OpCode::Query, ResponseCode::NoError);
        answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::A(A(address))));
        answer.add_query(query);
        socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
    }
}

/// What a line of a shell's prints in the guest.
async fn run(client: &mut AgentClient<Channel>, id: &str, line: &str) -> String {
    let argv = ["/bin/bash", "-c", line].map(str::to_owned).to_vec();
    let process = Some(envd::StartRequest { argv, close_stdin: true, ..Default::default() });
    let request = agent::StartProcessRequest { capsule_id: id.to_owned(), process, keep_awake: false };
    let mut events = client.exec(request).await.unwrap().into_inner();
    let mut output = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(Event::Output(chunk)) = event.event {
            output.extend_from_slice(&chunk.data);
        }
    }
    String::from_utf8(output).unwrap()
}

/// Looks the allowed name up and reaches it; nothing else can be looked up or reached.
async fn assert_policy_holds(client: &mut AgentClient<Channel>, id: &str) {
    let reach = |address: &str, port| {
        format!(
            "timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/{port} && cat <&3' 2>/dev/null || echo cut off"
        )
    };
    let looked_up = run(client, id, "getent ahostsv4 www.example.com | cut -d' ' -f1 | uniq").await;
    assert_eq!(looked_up, format!("{ALLOWED}\n"));
    assert_eq!(run(client, id, &reach("www.example.com", 80)).await, "here");
    let refused = run(client, id, "timeout 20 getent ahostsv4 other.test; echo $?").await;
    assert_eq!(refused, "2\n", "refused at once");
    for (address, port) in
        [(&*OTHER.to_string(), 80), (NAME_SERVER, 80), ("169.254.169.254", 80), ("169.254.0.22", 80)]
    {
        assert_eq!(run(client, id, &reach(address, port)).await, "cut off\n", "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_what_its_policy_allows_in_every_life() {
    let (_turn, site) = support::site("egress", "30171-30180").await;
    make_outside();
    let settings = [("WRENN_DNS", NAME_SERVER)];
    let (agent, mut client) = site.start(&settings).await;
    let id = CapsuleId::from_u128(uuid::Uuid::now_v7().as_u128()).to_string();
    let request = agent::CreateCapsuleRequest {
        capsule_id: id.clone(),
        team_id: TeamId::from_u128(7).to_string(),
        template_id: TemplateId::from_u128(0).to_string(),
        template_team_id: TeamId::from_u128(0).to_string(),
        vcpus: 1,
        memory_mib: 256,
        disk_mib: 1024,
        egress: Some(agent::EgressPolicy {
            deny_all: true,
            allow: vec!["www.example.com".into()],
            deny: Vec::new(),
        }),
        ..Default::default()
    };
    let mut wrong = request.clone();
    wrong.egress.as_mut().unwrap().allow.push("198.18.1.1/24".into());
    let status = client.create_capsule(wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.metadata().get(FIELD).unwrap(), "egress");
    assert!(status.message().contains("198.18.1.0/24"), "{}", status.message());

    client.create_capsule(request).await.unwrap();
    assert_policy_holds(&mut client, &id).await;

    let capsule = || agent::CapsuleRef { capsule_id: id.clone() };
    client.pause_capsule(capsule()).await.unwrap();
    client.resume_capsule(capsule()).await.unwrap();
    assert_policy_holds(&mut client, &id).await;

    agent.stop().await;
    let (agent, mut client) = site.start(&settings).await;
    assert_policy_holds(&mut client, &id).await;

    client.destroy_capsule(capsule()).await.unwrap();
    agent.stop().await;
    site.close().await;
}
