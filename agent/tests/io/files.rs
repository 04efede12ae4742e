//! Files of a capsule.

use tonic::Code;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;
use wrenn_proto::agent::v1::read_file_response::Part as Read;
use wrenn_proto::agent::v1::write_file_request::Part as Write;
use wrenn_proto::envd::v1 as envd;

use crate::support::calls::{create, new_id, run, soon, until};
use crate::support::end;
use crate::{cause, ended, finish, site, state};

fn read(id: &str, path: &str) -> agent::ReadFileRequest {
    let file = Some(envd::ReadRequest { path: path.to_owned(), ..Default::default() });
    agent::ReadFileRequest { capsule_id: id.to_owned(), file }
}

fn start(id: &str, path: &str) -> agent::WriteFileRequest {
    let start = envd::WriteStart { path: path.to_owned(), ..Default::default() };
    agent::WriteFileRequest { capsule_id: id.to_owned(), part: Some(Write::Start(start)) }
}

fn part(part: Write) -> agent::WriteFileRequest {
    agent::WriteFileRequest { part: Some(part), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_both_ways_and_break_off_without_a_trace() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let id = new_id();
    client.create_capsule(create(&id)).await.unwrap();

    let chunk: bytes::Bytes = (0..=255u8).cycle().take(64 << 10).collect();
    let data = std::iter::repeat_n(part(Write::Data(chunk.clone())), 64);
    let whole =
        std::iter::once(start(&id, "/tmp/big")).chain(data).chain([part(Write::End(agent::WriteFileEnd {}))]);
    let written = client.write_file(tokio_stream::iter(whole)).await.unwrap().into_inner();
    assert_eq!(written.entry.unwrap().size, 4 << 20);

    let mut parts = client.read_file(read(&id, "/tmp/big")).await.unwrap().into_inner();
    let Some(Read::Entry(entry)) = parts.message().await.unwrap().unwrap().part else {
        panic!("no entry first")
    };
    assert_eq!((entry.path.as_str(), entry.size), ("/tmp/big", 4 << 20));
    let mut content = Vec::new();
    while let Some(message) = parts.message().await.unwrap() {
        let Some(Read::Data(data)) = message.part else { panic!("only data follows") };
        content.extend_from_slice(&data);
    }
    assert!(content == chunk.repeat(64));

    // A write that breaks off, for whatever reason, changes nothing.
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    let broken = {
        let mut client = client.clone();
        tokio::spawn(
            async move { client.write_file(tokio_stream::wrappers::ReceiverStream::new(messages)).await },
        )
    };
    sender.send(start(&id, "/tmp/big")).await.unwrap();
    sender.send(part(Write::Data(chunk.clone()))).await.unwrap();
    drop(sender);
    broken.await.unwrap().expect_err("no `end` came");
    let nonsense = tokio_stream::iter([start(&id, "/tmp/big"), agent::WriteFileRequest::default()]);
    assert_eq!(client.write_file(nonsense).await.unwrap_err().code(), Code::InvalidArgument);
    until("only what was there is there", async || {
        run(&mut client, &id, "stat -c %s /tmp/big; ls -A /tmp").await.0 == "4194304\nbig\n"
    })
    .await;

    // A read that nobody goes on with ends in the guest too; one of a slow reader waits there.
    run(&mut client, &id, "truncate -s 1G /tmp/huge").await;
    let mut parts = client.read_file(read(&id, "/dev/../tmp/huge")).await.unwrap().into_inner();
    parts.message().await.unwrap();
    let open = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c ' /tmp/huge$'";
    assert_eq!(run(&mut client, &id, open).await.0.trim(), "1", "held back, not read ahead");
    drop(parts);
    until("the guest's read has ended", async || run(&mut client, &id, open).await.0.trim() == "0").await;

    let missing = client.read_file(read(&id, "/nowhere")).await.map(drop).unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let stat = agent::StatFileRequest {
        capsule_id: id.clone(),
        file: Some(envd::StatRequest { path: "/tmp/big".into(), ..Default::default() }),
    };
    assert_eq!(client.stat_file(stat).await.unwrap().into_inner().entry.unwrap().size, 4 << 20);

    // Watching a directory ends with the life it began in.
    let watch = agent::WatchDirectoryRequest {
        capsule_id: id.clone(),
        directory: Some(envd::WatchRequest { path: "/tmp".into(), ..Default::default() }),
    };
    let mut events = client.watch_directory(watch).await.unwrap().into_inner();
    let ready = soon("the watch begins", events.message()).await.unwrap().unwrap().event;
    assert!(matches!(ready, Some(envd::file_event::Event::Ready(_))), "{ready:?}");
    run(&mut client, &id, "echo > /tmp/new").await;
    let event = soon("a change", events.message()).await.unwrap().unwrap().event;
    let Some(envd::file_event::Event::Change(change)) = event else { panic!("{event:?}") };
    assert_eq!(change.path, "/tmp/new");
    end(site.vmm()).unwrap();
    let end = ended(events).await;
    assert_eq!((end.code(), cause(&end)), (Code::FailedPrecondition, Some("VMM_DIED")));
    until("the capsule is gone", async || state(&mut client, &id).await == CapsuleState::Stopped).await;
    finish(agent, site).await;
}
