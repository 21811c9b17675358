//! The example `build_cache`: its workflow's own steps, as two runners execute them, one after the other.
#![cfg(unix)]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::peers::{Console, Error};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

const WORKFLOW: &str = include_str!("../../manager/examples/build_cache/github-actions.yml");
const PROGRAM: &str = env!("CARGO_BIN_EXE_build_cache");

/// A bound that only a hanging test reaches.
const PATIENCE: Duration = Duration::from_secs(60);

/// A key of a private network.
const KEY: &str = "5f1c0a6de4ea1be0a1b6d1aa4a4b6a2c3f5e8d7c9b0a1e2d3c4b5a6978879aab";

/// What a step of the workflow runs.
fn step(name: &str) -> String {
    let (_, step) = WORKFLOW
        .split_once(&format!("- name: {name}\n        run: |\n"))
        .unwrap_or_else(|| panic!("no step {name}"));
    let lines = step
        .lines()
        .map_while(|line| line.strip_prefix("          "));
    let script = lines.collect::<Vec<_>>().join("\n");
    assert!(!script.is_empty(), "nothing in {name}");
    // What GitHub would put in is not seen by a shell.
    assert!(!script.contains("${{"), "{script}");
    script
}

/// The node that keeps results, in the runners' private network.
struct Node {
    console: Console,
    address: String,
}

impl Node {
    async fn start() -> Result<Self, Error> {
        let mut console = Console::start(quiet(Command::new(PROGRAM), "serve"))?;
        let address = |line: &str| line.strip_prefix("serving at ").map(str::to_owned);
        let address = console.shows("address", PATIENCE, address).await?;
        Ok(Self { console, address })
    }
}

fn quiet(mut command: Command, argument: &str) -> Command {
    let off = ["ENABLE_MDNS", "ENABLE_PORT_MAPPING", "FILE_REGISTRY"];
    command
        .arg(argument)
        .env("ANYPATH_LISTEN_ADDRS", "/ip4/127.0.0.1/tcp/0")
        .env("ANYPATH_SWARM_KEY", KEY)
        .envs(off.map(|key| (format!("ANYPATH_{key}"), "false")));
    command
}

/// A machine that has the project, cargo and the program, and nothing else of ours.
struct Runner(TempDir);

impl Runner {
    fn new() -> Result<Self, Error> {
        let directory = TempDir::new()?;
        let project = directory.path();
        std::fs::create_dir(project.join("src"))?;
        let manifest =
            "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
        std::fs::write(project.join("Cargo.toml"), manifest)?;
        let source =
            "fn main() { println!(\"hello\"); }\n#[test] fn adds() { assert_eq!(1 + 1, 2); }\n";
        std::fs::write(project.join("src/main.rs"), source)?;
        Ok(Self(directory))
    }

    /// Runs a step as GitHub's runners do.
    async fn run(&self, name: &str, node: &str) -> Result<Output, Error> {
        let mut path = vec![Path::new(PROGRAM).parent().expect("a directory").to_owned()];
        path.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        let path = std::env::join_paths(path).expect("no colon in a directory");
        let mut command = quiet(Command::new("bash"), "-e");
        command
            .arg("-c")
            .arg(step(name))
            .current_dir(&self.0)
            .env("PATH", path)
            .env("NAME", "build-Linux-0123")
            .env("ANYPATH_BOOTSTRAP_PEERS", node)
            .env("CARGO_NET_OFFLINE", "true")
            .env_remove("CARGO_TARGET_DIR");
        Ok(tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_| Error::Wrong(format!("{name} does not end")))??)
    }

    async fn succeeds(&self, name: &str, node: &str) -> Result<String, Error> {
        let output = self.run(name, node).await?;
        assert!(output.status.success(), "{name}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("target/release/hello")
    }
}

#[tokio::test]
async fn a_second_run_of_the_workflow_gets_what_the_first_has_built() -> Result<(), Error> {
    let mut node = Node::start().await?;
    let (first, second) = (Runner::new()?, Runner::new()?);

    let told = first.succeeds("Build", &node.address).await?;
    assert!(
        told.contains("miss: build-Linux-0123 was made, is bafy"),
        "{told}"
    );
    assert!(told.contains(", kept by "), "{told}");
    let kept = |line: &str| {
        line.starts_with("kept \"build-Linux-0123\": bafy")
            .then_some(())
    };
    node.console.shows("result", PATIENCE, kept).await?;
    first.succeeds("Test", &node.address).await?;
    let built = std::fs::read(first.program())?;
    // The machine of the first run goes.
    drop(first);

    // It can build nothing that is not there already: it has no source.
    std::fs::remove_dir_all(second.0.path().join("src"))?;
    let told = second.succeeds("Build", &node.address).await?;
    assert!(told.contains("hit: build-Linux-0123 is bafy"), "{told}");
    assert_eq!(std::fs::read(second.program())?, built);
    let hello = Command::new(second.program()).output().await?;
    assert_eq!(hello.stdout, b"hello\n");
    Ok(())
}

#[tokio::test]
async fn without_the_node_or_its_address_a_run_builds_by_itself() -> Result<(), Error> {
    let node = Node::start().await?;
    let address = node.address.clone();
    drop(node);
    for address in [address.as_str(), ""] {
        let runner = Runner::new()?;
        let told = runner.succeeds("Build", address).await?;
        assert!(
            told.contains("miss: ") && !told.contains("kept by"),
            "{told}"
        );
        runner.succeeds("Test", address).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_build_that_fails_fails_its_step_and_leaves_nothing() -> Result<(), Error> {
    let node = Node::start().await?;
    let runner = Runner::new()?;
    std::fs::write(runner.0.path().join("src/main.rs"), "no Rust")?;
    let output = runner.run("Build", &node.address).await?;
    assert!(!output.status.success(), "{output:?}");
    let repaired = Runner::new()?;
    let told = repaired.succeeds("Build", &node.address).await?;
    assert!(told.contains("miss: "), "{told}");
    Ok(())
}
