//! Images from the disks of capsules.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use tonic::Code;
use wrenn_agent::ids::TeamId;
use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;

use super::support::Site;
use super::support::calls::{capsule, create, new_id, run, sh};
use super::{new_template, site};

fn flatten(id: &str, template: &str) -> agent::FlattenCapsuleRequest {
    agent::FlattenCapsuleRequest {
        capsule_id: id.to_owned(),
        template_id: template.to_owned(),
        template_team_id: team(),
    }
}

fn team() -> String {
    TeamId::from_u128(7).to_string()
}

fn from(template: &str, id: &str, disk_mib: u32) -> agent::CreateCapsuleRequest {
    let template_id = template.to_owned();
    agent::CreateCapsuleRequest { template_id, template_team_id: team(), disk_mib, ..create(id) }
}

/// Nothing is left of what was made for it, but the images that are whole.
fn assert_whole(site: &Site, images: &[&str]) {
    let names = |of: &str| {
        let paths = super::names(&site.directory.join(of)).into_iter();
        paths.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names("data/templates"), BTreeSet::new());
    let wanted = images.iter().copied().map(str::to_owned).collect();
    assert_eq!(names(&format!("images/teams/{}", team())), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_becomes_a_small_image_that_capsules_boot_from() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (id, template, paused_template) = (new_id(), new_template(), new_template());
    client.create_capsule(create(&id)).await.unwrap();
    // What was deleted takes no room in an image, what is in memory alone is not in it.
    let work = "head -c 150000000 /dev/urandom > /root/junk; sync; rm /root/junk; \
                echo kept > /root/mark; echo lost > /run/mark";
    let (output, exited) = run(&mut client, &id, work).await;
    assert_eq!(exited.exit_code, Some(0), "{output}");
    let mut writing = client.exec(sh(&id, "while :; do date > /root/busy; done")).await.unwrap().into_inner();

    let image = client.flatten_capsule(flatten(&id, &template)).await.unwrap().into_inner();
    println!(
        "stood still for {} us, {} MiB of a disk of {} MiB",
        image.stopped_us,
        image.allocated_bytes >> 20,
        image.disk_mib
    );
    assert!(image.stopped_us > 0 && image.disk_mib < 400, "{image:?}");
    assert!(image.allocated_bytes > 0 && image.allocated_bytes <= u64::from(image.disk_mib) << 20);
    let again = client.flatten_capsule(flatten(&id, &template)).await.unwrap().into_inner();
    assert_eq!(again, image, "the same image");
    assert_whole(&site, &[&template]);
    let file = site.directory.join("images/teams").join(team()).join(&template).join("rootfs.ext4");
    let metadata = std::fs::metadata(&file).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o600), "no other user reads a team's disk");

    // It went on: the same life, and its streams.
    drop(writing.message().await);
    drop(writing);
    assert_eq!(run(&mut client, &id, "cat /root/mark /run/mark").await.0, "kept\nlost\n");

    let copy = new_id();
    let made = client.create_capsule(from(&template, &copy, 2048)).await.unwrap().into_inner();
    assert_eq!((made.state(), made.disk_mib), (CapsuleState::Running, 2048));
    let look = "cat /root/mark; test -e /run/mark || echo booted; hostname; test -e /root/busy && echo written; \
                dd if=/dev/zero of=/root/room bs=1M count=700 2>/dev/null && echo room";
    let (output, _) = run(&mut client, &copy, look).await;
    assert_eq!(output, format!("kept\nbooted\n{copy}\nwritten\nroom\n"));
    let too_small = client.create_capsule(from(&template, &new_id(), 64)).await.unwrap_err();
    assert_eq!(too_small.code(), Code::InvalidArgument);
    assert!(too_small.message().contains(&format!("{} MiB or more", image.disk_mib)), "{too_small:?}");

    // Of one that is paused, too, which stays so.
    client.pause_capsule(capsule(&id)).await.unwrap();
    let paused = client.flatten_capsule(flatten(&id, &paused_template)).await.unwrap().into_inner();
    assert_eq!(paused.stopped_us, 0);
    assert_eq!(client.get_capsule(capsule(&id)).await.unwrap().into_inner().state(), CapsuleState::Paused);
    let other = new_id();
    client.create_capsule(from(&paused_template, &other, 1024)).await.unwrap();
    assert_eq!(run(&mut client, &other, "cat /root/mark").await.0, "kept\n");

    let taken = client.flatten_capsule(flatten(&copy, &template)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(taken.message().contains(&id), "{taken:?}");

    for template in [&template, &paused_template] {
        client.delete_template(agent::DeleteTemplateRequest { template_id: template.clone() }).await.unwrap();
    }
    assert_whole(&site, &[]);
    let status = client.create_capsule(from(&template, &new_id(), 1024)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for id in [&id, &copy, &other] {
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_become_an_image_is_refused_with_the_reason() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[]).await;
    let (id, template) = (new_id(), new_template());
    let status = client.flatten_capsule(flatten(&id, &template)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let wrong = agent::FlattenCapsuleRequest { template_team_id: "team".into(), ..flatten(&id, &template) };
    assert_eq!(client.flatten_capsule(wrong).await.unwrap_err().code(), Code::InvalidArgument);

    client.create_capsule(create(&id)).await.unwrap();
    client.pause_capsule(capsule(&id)).await.unwrap();
    // As by a guest that has no use for a file system.
    let snapshot = site.directory.join("data/snapshots").join(&id);
    // With the disk store dm-snapshot the second has what is not in the first; others have links of it.
    for part in ["disk.ext4", "disk.ext4.base"].map(|name| snapshot.join(name)) {
        let Ok(metadata) = std::fs::metadata(&part) else { continue };
        std::fs::remove_file(&part).unwrap();
        std::fs::File::create_new(&part).unwrap().set_len(metadata.len()).unwrap();
    }
    let status = client.flatten_capsule(flatten(&id, &template)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("no ext4 file system"), "{status:?}");
    assert!(status.message().contains(&id), "{status:?}");
    assert_whole(&site, &[]);
    assert_eq!(client.get_capsule(capsule(&id)).await.unwrap().into_inner().state(), CapsuleState::Paused);
    client.destroy_capsule(capsule(&id)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}
