//! What a guest sends to a name server, and what a name server says to it.
//!
//! The input is a guest's message, after its length in two bytes, and then a server's answer, whose number is put right.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wrenn_vmm::network::{
    EgressPolicy,
    names::{Question, Reading, Reply, Transport},
};

static POLICY: LazyLock<EgressPolicy> = LazyLock::new(|| {
    EgressPolicy::new(false, &["*.com", "a.net"], &["*.net", "10.0.0.0/8"]).expect("a sound policy")
});

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let (question, answer) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    for transport in [Transport::Datagram, Transport::Stream] {
        let Reading::Ask(question) = Question::read(&POLICY, question, transport) else { continue };
        let (number, _asked) = question.ask().expect("a question that was read can be written");
        let mut answer = answer.to_vec();
        if let Some(place) = answer.first_chunk_mut() {
            *place = number.to_be_bytes();
        }
        if let Reply::Answer(answer) = question.read_reply(&POLICY, number, &answer) {
            let _unwritable = answer.encode();
        }
    }
});
