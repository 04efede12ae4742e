//! What is checked in under `src/generated/` is what the `.proto` files say. The code is not generated at build, as the
//! compilers for that take longer to build than all that is built with them. `make proto` writes it anew.

use std::{env, error::Error, fs, path::Path, process::Command};

use prost::Message as _;
use prost_types::FileDescriptorSet;

const SOURCES: [&str; 2] = ["proto/wrenn/envd/v1/envd.proto", "proto/wrenn/agent/v1/agent.proto"];
const GENERATED: [&str; 2] = ["wrenn.envd.v1.rs", "wrenn.agent.v1.rs"];

/// By `protoc`, which is the `protobuf-compiler` of Debian. One written in Rust would bring features of libraries with
/// it that the programs are built without, and have them built twice.
fn generate(into: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = tempfile::NamedTempFile::new()?;
    let compiled = Command::new("protoc")
        .args(["--include_imports", "--include_source_info", "--proto_path=proto", "--descriptor_set_out"])
        .arg(descriptors.path())
        .args(SOURCES)
        .status()
        .map_err(|error| format!("starting protoc, of the package protobuf-compiler: {error}"))?;
    assert!(compiled.success(), "protoc {compiled}");
    let descriptors = FileDescriptorSet::decode(&*fs::read(descriptors.path())?)?;
    Ok(tonic_prost_build::configure().bytes(".").out_dir(into).compile_fds(descriptors)?)
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
