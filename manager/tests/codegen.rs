//! Regenerates `src/generated/` from `proto/` and fails when the checked-in code differs.

use std::{fs, path::Path};

#[test]
fn generated_code_is_what_the_protos_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut protos: Vec<_> = fs::read_dir(root.join("proto"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "proto")
        })
        .collect();
    protos.sort();
    let descriptors = protox::compile(&protos, [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let mut stale = Vec::new();
    for file in fs::read_dir(out.path()).unwrap() {
        let file = file.unwrap();
        let fresh = fs::read_to_string(file.path()).unwrap();
        let checked_in = root.join("src/generated").join(file.file_name());
        if fs::read_to_string(&checked_in).unwrap_or_default() != fresh {
            fs::write(&checked_in, fresh).unwrap();
            stale.push(file.file_name());
        }
    }
    assert!(
        stale.is_empty(),
        "{stale:?} in src/generated were stale; they are regenerated now, commit them"
    );
}
