//! Regenerates `src/generated/` from `proto/` and fails when the checked-in code differs.

use std::{fs, path::Path};

#[test]
fn generated_code_is_what_the_proto_gives() {
    const NAME: &str = "anypath.dht.ipns.rs";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors =
        protox::compile([root.join("proto/ipns.proto")], [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    prost_build::Config::new()
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let fresh = fs::read_to_string(out.path().join(NAME)).unwrap();
    let checked_in = root.join("src/generated").join(NAME);
    if fs::read_to_string(&checked_in).unwrap_or_default() != fresh {
        fs::write(&checked_in, fresh).unwrap();
        panic!("src/generated/{NAME} was stale; it is regenerated now, commit it");
    }
}
