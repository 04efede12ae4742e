//! The schema that is checked in is the one that is served.

use std::path::Path;

#[test]
fn the_checked_in_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../codegen/schema.graphql");
    let served = wrenn_schema::sdl();
    if std::env::var_os("WRENN_UPDATE_SDL").is_some() {
        std::fs::write(&path, &served).expect("writes the schema");
    }
    let checked_in = std::fs::read_to_string(&path).expect("reads the schema");
    assert!(
        checked_in == served,
        "codegen/schema.graphql is not what is served; write it with WRENN_UPDATE_SDL=1 cargo test -p wrenn-schema sdl"
    );
}
