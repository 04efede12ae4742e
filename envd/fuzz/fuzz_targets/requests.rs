//! Requests as they come off the wire: the first byte chooses the message, the rest is decoded as it, and what it asks
//! for is checked as far as that touches nothing.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use wrenn_envd::access::check_length;
use wrenn_envd::files::path::{absolute, split};
use wrenn_envd::files::write::check_mode;
use wrenn_envd::identity;
use wrenn_envd::launch::check_env;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::content_request::What;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, message)) = bytes.split_first() else { return };
    match choice % 12 {
        0 => decoded(message, |it: pb::StatRequest| path(&it.path, &it.user)),
        1 => decoded(message, |it: pb::ListDirectoryRequest| path(&it.path, &it.user)),
        2 => decoded(message, |it: pb::MakeDirectoryRequest| path(&it.path, &it.user)),
        3 => decoded(message, |it: pb::MoveRequest| path(&it.from, &it.to)),
        4 => decoded(message, |it: pb::RemoveRequest| path(&it.path, &it.user)),
        5 => decoded(message, |it: pb::ResizeRequest| drop(it)),
        6 => decoded(message, |it: pb::ContentRequest| match it.what {
            Some(What::Read(read)) => path(&read.path, &read.user),
            Some(What::Write(start)) => {
                path(&start.path, &start.user);
                if check_mode(start.mode).is_ok() {
                    assert!(start.mode.unwrap_or_default() <= 0o7777);
                }
            }
            None => {}
        }),
        7 => decoded(message, |it: pb::WatchRequest| path(&it.path, &it.user)),
        8 => decoded(message, |it: pb::PostRestoreRequest| {
            if let Some(identity) = &it.identity {
                let _ = identity::check(identity);
            }
            it.configuration.iter().for_each(configuration);
        }),
        9 => decoded(message, |it: pb::ConfigureRequest| configuration(&it)),
        10 => decoded(message, |it: pb::StartRequest| drop(check_env(&it.env, "env"))),
        _ => decoded(message, |_: pb::WriteInputRequest| {}),
    }
});

fn decoded<M: Message + Default>(bytes: &[u8], check: impl FnOnce(M)) {
    if let Ok(message) = M::decode(bytes) {
        check(message);
    }
}

fn path(asked: &str, home: &str) {
    if let Ok(target) = absolute(asked, home, "path") {
        assert!(target.path.is_absolute());
        if let Ok((parent, name)) = split(&target) {
            assert_eq!(parent.join(name), target.path);
            assert!(!name.is_empty() && name != ".." && Path::new(name).components().count() == 1);
        }
    }
}

fn configuration(it: &pb::ConfigureRequest) {
    let _ = check_env(&it.env, "env");
    let _ = check_length(&it.token);
    let _ = identity::check_name_servers(&it.name_servers, "name_servers");
}
