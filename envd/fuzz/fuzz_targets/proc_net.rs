//! The tables of `/proc/net`: whatever they say, reading them ends, and yields listeners that are possible.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wrenn_envd::ports::proc_net::parse;

fuzz_target!(|text: &[u8]| {
    let mut found = Vec::new();
    let _ = parse(text, &mut found);
    for listener in &found {
        assert!(listener.port != 0 && listener.inode != 0);
    }
    // Rows are independent of how the reader cuts the table between them.
    if let Some(cut) = text.iter().position(|&it| it == b'\n') {
        let (head, tail) = text.split_at(cut + 1);
        let mut again = Vec::new();
        if parse(head, &mut again).is_continue() {
            let _ = parse(tail, &mut again);
        }
        assert_eq!(found, again);
    }
});
