//! A large file between two real processes on loopback: equal hash, bounded memory.
//!
//! Needs the release binary (`ANYPATH_BIN`, or `target/release/anypath`), hence behind `natlab`.
#![cfg(feature = "natlab")]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;
/// The file: 1 GiB, which no tier of the getting node's memory could hold.
const FILE_BYTES: u64 = 1024 * MIB;
/// Resident memory either process may reach at its peak.
const MEMORY_BYTES: u64 = 300 * MIB;

#[test]
fn a_gibibyte_crosses_loopback_in_under_300_mib_of_memory() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let source = scratch.path().join("source");
    let expected = write_random(&source, FILE_BYTES).expect("the source file");

    let mut server = Node::start(&scratch.path().join("server"));
    let mut getter = Node::start(&scratch.path().join("getter"));

    let added = server.run(&["add", path(&source)]);
    let cid = added.trim();
    let copy = scratch.path().join("copy");
    getter.run(&["get", cid, "-o", path(&copy), "--peer", &server.address]);

    assert_eq!(sha256(&copy).expect("the copy"), expected);
    for (name, node) in [("server", &server), ("getter", &getter)] {
        let peak = node.peak_resident_bytes();
        println!("{name}: peak resident memory {} MiB", peak / MIB);
        assert!(peak < MEMORY_BYTES, "{name} needed {} MiB", peak / MIB);
    }
    getter.stop();
    server.stop();
}

/// A running `anypath start`, killed with the test.
struct Node {
    data: PathBuf,
    address: String,
    process: Child,
    /// Held open: a closed pipe would end the node.
    _output: BufReader<ChildStdout>,
}

impl Node {
    fn start(data: &Path) -> Self {
        std::fs::create_dir_all(data).expect("a data directory");
        let mut process = anypath(data)
            .args(["--json", "start", "--private", "--no-mdns"])
            .args(["--port", "0", "--listen", "/ip4/127.0.0.1/tcp/0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the anypath binary");
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let started = started_event(&mut output);
        let peer = started["peer_id"].as_str().expect("a peer id");
        let listen = started["listen"][0].as_str().expect("an address");
        let address = match listen.contains("/p2p/") {
            true => listen.to_owned(),
            false => format!("{listen}/p2p/{peer}"),
        };
        Self {
            data: data.to_owned(),
            address,
            process,
            _output: output,
        }
    }

    /// Runs a command against this node and returns what it printed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = anypath(&self.data)
            .args(arguments)
            .output()
            .expect("the anypath binary");
        assert!(
            output.status.success(),
            "{arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn peak_resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))
            .expect("the node still runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .expect("Linux");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("a number of KiB");
        kib * 1024
    }

    /// Ends it the clean way and checks that it agrees.
    fn stop(&mut self) {
        self.run(&["shutdown"]);
        let status = self.process.wait().expect("our child");
        assert!(status.success(), "the node ended with {status}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn started_event(output: &mut impl BufRead) -> serde_json::Value {
    for line in output.lines() {
        let line = line.expect("the node's output");
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        if event["event"] == "started" {
            return event;
        }
    }
    panic!("the node ended before it had started");
}

/// The command, with nothing of this machine's own configuration.
fn anypath(data: &Path) -> Command {
    let binary = std::env::var_os("ANYPATH_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/anypath"),
        PathBuf::from,
    );
    let mut command = Command::new(binary);
    command
        .env("HOME", data)
        .env("XDG_CACHE_HOME", data.join("cache"))
        .arg("--data-dir")
        .arg(data);
    command
}

/// Fills a file with bytes that do not compress; returns their SHA-256.
fn write_random(path: &Path, bytes: u64) -> io::Result<[u8; 32]> {
    use rand::{Rng as _, SeedableRng as _};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
    let mut file = File::create(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; MIB as usize];
    for _ in 0..bytes / MIB {
        rng.fill_bytes(&mut chunk);
        hash.update(&chunk);
        file.write_all(&chunk)?;
    }
    Ok(hash.finalize().into())
}

fn sha256(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; MIB as usize];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&chunk[..read]),
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
