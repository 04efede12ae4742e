//! What is checked in under `src/generated/` is what the `.proto` files say. The code is not generated at build, as the
//! compilers for that take longer to build than all that is built with them. `make proto` writes it anew.

use std::{env, error::Error, fs, path::Path};

const SOURCES: [&str; 2] = ["proto/wrenn/envd/v1/envd.proto", "proto/wrenn/agent/v1/agent.proto"];
const GENERATED: [&str; 2] = ["wrenn.envd.v1.rs", "wrenn.agent.v1.rs"];

/// By a compiler written in Rust, so that no `protoc` is needed.
fn generate(into: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(SOURCES, ["proto"])?;
    tonic_prost_build::configure().bytes(".").out_dir(into).compile_fds(descriptors)?;
    Ok(())
}

#[test]
fn the_generated_code_is_that_of_the_proto_files() -> Result<(), Box<dyn Error>> {
    let checked_in = Path::new("src/generated");
    if env::var_os("WRENN_WRITE_GENERATED").is_some() {
        return generate(checked_in);
    }
    let fresh = tempfile::tempdir()?;
    generate(fresh.path())?;
    for file in GENERATED {
        let (have, want) =
            (fs::read_to_string(checked_in.join(file))?, fs::read_to_string(fresh.path().join(file))?);
        assert!(have == want, "{file} is not what the .proto files say: run `make proto`");
    }
    Ok(())
}
