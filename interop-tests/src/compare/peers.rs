//! The Rust peers that live outside the workspace.

use super::Error;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Their executables.
#[derive(Debug, Clone)]
pub struct Peers {
    /// beetswap 0.5.0.
    pub beetswap: PathBuf,
    /// litep2p 0.16.0.
    pub litep2p: PathBuf,
}

impl Peers {
    /// Builds `peers/rust` in release, with our profile and its own lock file; a no-op when it is built.
    ///
    /// # Errors
    ///
    /// cargo's, whose output is on stderr. litep2p needs `protoc`.
    pub async fn build() -> Result<Self, Error> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/rust");
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => std::path::absolute(Path::new(&directory).join("peers"))?,
            None => package.join("target"),
        };
        let status = Command::new("cargo")
            .args(["build", "--release", "--locked", "--manifest-path"])
            .arg(package.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            // The outer cargo's settings of this workspace are not the peers'.
            .env_remove("RUSTFLAGS")
            .status()
            .await?;
        if !status.success() {
            return Err("cannot build interop-tests/peers/rust (litep2p needs protoc: apt-get install protobuf-compiler)".into());
        }
        let release = target.join("release");
        Ok(Self {
            beetswap: release.join("beetswap"),
            litep2p: release.join("litep2p"),
        })
    }
}
