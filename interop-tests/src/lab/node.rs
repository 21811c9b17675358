//! The real `anypath` command on a host of the lab.

use super::program::Program;
use super::{Host, LabError, now};
use serde_json::Value;
use std::env;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long a node may take to start, and a short command to run.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a node's status is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// The command to run: `ANYPATH_BIN`, or `release/anypath` in the target directory of this
/// executable, which is built first unless the process is already inside the sandbox.
pub fn binary() -> Result<PathBuf, LabError> {
    if let Some(path) = env::var_os("ANYPATH_BIN") {
        return Ok(path.into());
    }
    let this = env::current_exe().map_err(LabError::io("finding this executable"))?;
    let target = this
        .ancestors()
        .find(|path| path.ends_with("debug") || path.ends_with("release"))
        .and_then(Path::parent)
        .ok_or_else(|| LabError::Plan("set ANYPATH_BIN to the anypath command".into()))?;
    if !super::is_inside() {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--release", "--package", "anypath", "--target-dir"])
            .arg(target);
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        super::sandbox::complete(cargo, None)?;
    }
    Ok(target.join("release/anypath"))
}

/// How a node is started.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// Arguments of `anypath start`, besides the data directory.
    pub arguments: Vec<String>,
    /// Configuration keys and values, given through the environment.
    pub settings: Vec<(String, String)>,
}

impl NodeConfig {
    /// Adds arguments of `anypath start`.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a configuration key, for example `relay_circuit_bytes`.
    #[must_use]
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A running `anypath start`.
#[derive(Debug)]
pub struct Node {
    host: Host,
    directory: PathBuf,
    config: NodeConfig,
    process: Program,
    peer_id: String,
    api: String,
}

impl Node {
    /// Starts a node on `host` with its data, its home and its log below `directory`, and waits until
    /// it says that it has started.
    pub fn start(host: &Host, directory: &Path, config: NodeConfig) -> Result<Self, LabError> {
        let directory = directory.join(host.name());
        std::fs::create_dir_all(directory.join("home")).map_err(LabError::file(&directory))?;
        let (process, started) = launch(host, &directory, &config)?;
        let text = |key: &str| {
            let value = started.get(key).and_then(Value::as_str).map(str::to_owned);
            value.ok_or_else(|| process.failure(format!("started without `{key}`: {started}")))
        };
        let (peer_id, api) = (text("peer_id")?, text("api")?);
        Ok(Self {
            host: host.clone(),
            directory,
            config,
            process,
            peer_id,
            api,
        })
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its peer id.
    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// Its process.
    pub fn process(&self) -> &Program {
        &self.process
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.process.kill()
    }

    /// Starts it again with the same data after a [`kill`](Self::kill).
    pub fn restart(&mut self) -> Result<(), LabError> {
        let (process, started) = launch(&self.host, &self.directory, &self.config)?;
        if started.get("peer_id").and_then(Value::as_str) != Some(&self.peer_id) {
            return Err(process.failure("came back with another peer id"));
        }
        self.process = process;
        Ok(())
    }

    /// An `anypath` command line of this node's user.
    pub fn command(&self) -> Result<Command, LabError> {
        command(&self.directory)
    }

    /// `anypath add`: the CID that it prints.
    pub fn add(&self, file: &Path) -> Result<String, LabError> {
        let mut command = self.command()?;
        command.arg("add").arg(file);
        let mut program = self.run(&mut command, "add")?;
        let cid = program.line(now() + PATIENCE)?.map(|line| line.text);
        let status = program.wait(now() + PATIENCE)?;
        cid.filter(|_| status.success())
            .ok_or_else(|| program.failure(format!("add: {status}")))
    }

    /// Starts a command of this node's user on its host.
    pub fn run(&self, command: &mut Command, name: &str) -> Result<Program, LabError> {
        Program::start(
            &self.host,
            command,
            &self.directory.join(format!("{name}.log")),
        )
    }

    /// `GET` of the node's HTTP API.
    pub fn api(&self, path: &str) -> Result<Value, LabError> {
        let api = &self.api;
        let body = self
            .host
            .enter(|| http_get(api, path))?
            .map_err(LabError::io(format!("asking {} for {path}", self.api)))?;
        serde_json::from_str(&body).map_err(|error| {
            self.process
                .failure(format!("{path} answered {body:?}: {error}"))
        })
    }

    /// Waits until `/api/status` or another path answers as `ready` wants it.
    pub fn await_api(
        &self,
        path: &str,
        what: &str,
        patience: Duration,
        ready: impl Fn(&Value) -> bool,
    ) -> Result<Value, LabError> {
        let deadline = now() + patience;
        loop {
            let answer = self.api(path);
            match answer {
                Ok(answer) if ready(&answer) => return Ok(answer),
                answer if now() >= deadline => {
                    let last =
                        answer.map_or_else(|error| super::explain(&error), |a| a.to_string());
                    return Err(self
                        .process
                        .failure(format!("waiting for {what}; last: {last}")));
                }
                _ => thread::sleep(LOOK),
            }
        }
    }

    /// Waits until it holds a reservation on a relay.
    pub fn await_reservation(&self) -> Result<(), LabError> {
        self.await_api("/api/status", "a reservation", PATIENCE, |status| {
            status
                .get("reservations")
                .and_then(Value::as_array)
                .is_some_and(|all| !all.is_empty())
        })
        .map(drop)
    }
}

fn command(directory: &Path) -> Result<Command, LabError> {
    let mut command = Command::new(binary()?);
    command
        .env("HOME", directory.join("home"))
        .env_remove("XDG_CACHE_HOME")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME")
        .env(
            "RUST_LOG",
            env::var("ANYPATH_LAB_LOG").unwrap_or_else(|_| "info".into()),
        )
        .arg("--data-dir")
        .arg(directory.join("data"));
    Ok(command)
}

fn launch(
    host: &Host,
    directory: &Path,
    config: &NodeConfig,
) -> Result<(Program, Value), LabError> {
    let mut command = command(directory)?;
    // Hosts are machines of their own: no registry of files joins them.
    command.env("ANYPATH_FILE_REGISTRY", "false");
    for (key, value) in &config.settings {
        command.env(format!("ANYPATH_{}", key.to_uppercase()), value);
    }
    command
        .args(["--json", "start", "--private"])
        .args(&config.arguments);
    let process = Program::start(host, &mut command, &directory.join("node.log"))?;
    let deadline = now() + PATIENCE;
    while let Some(line) = process.line(deadline)? {
        if let Ok(event) = serde_json::from_str::<Value>(&line.text)
            && event.get("event").and_then(Value::as_str) == Some("started")
        {
            return Ok((process, event));
        }
    }
    Err(process.failure("ended before it had started"))
}

fn http_get(api: &str, path: &str) -> std::io::Result<String> {
    let address: SocketAddr = api
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .parse()
        .unwrap_or_else(|_| (Ipv4Addr::LOCALHOST, 9000).into());
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map_or("", |(_head, body)| body);
    Ok(body.to_owned())
}

/// What `anypath get --json` said, as it happened. Times are its own, since it began.
#[derive(Clone, Debug, Default)]
pub struct GetReport {
    /// A relayed connection to the provider was up.
    pub relayed: Option<Duration>,
    /// The first bytes of the file were written, and over which path they had come.
    pub first_bytes: Option<(Duration, String)>,
    /// A direct connection was up.
    pub direct: Option<Duration>,
    /// It waits for a direct path, because the relay allows only so many bytes.
    pub waiting_for_direct: Option<u64>,
    /// Bytes per path, once it is complete.
    pub done: Option<Done>,
    /// The exit code.
    pub exit: Option<i32>,
    /// What it said of its failure, and everything on standard error.
    pub errors: String,
}

/// The account of a completed `get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of blocks that came over a relay.
    pub relayed: u64,
    /// Bytes of blocks that came over direct connections.
    pub direct: u64,
    /// Bytes of blocks that were there before.
    pub local: u64,
    /// Bytes of the file that an interrupted run had left in the partial output.
    pub resumed: u64,
    /// From its beginning to its end.
    pub elapsed: Duration,
}

/// A running `anypath get`.
#[derive(Debug)]
pub struct Get {
    program: Program,
    report: GetReport,
}

impl Get {
    /// Starts `anypath get CID -o OUTPUT [--peer PEER]` beside `node`.
    pub fn start(
        node: &Node,
        cid: &str,
        output: &Path,
        peer: Option<&str>,
    ) -> Result<Self, LabError> {
        let mut command = node.command()?;
        command.args(["--json", "get", cid, "-o"]).arg(output);
        command.args(peer.into_iter().flat_map(|peer| ["--peer", peer]));
        std::fs::remove_file(node.directory.join("get.log")).ok();
        Ok(Self {
            program: node.run(&mut command, "get")?,
            report: GetReport::default(),
        })
    }

    /// What it has said so far.
    pub fn report(&self) -> &GetReport {
        &self.report
    }

    /// Reads the next thing it says; false at its end.
    pub fn step(&mut self, deadline: Instant) -> Result<bool, LabError> {
        let Some(line) = self.program.line(deadline)? else {
            return Ok(false);
        };
        match serde_json::from_str::<Value>(&line.text) {
            Ok(event) => self.report.note(&event),
            Err(_) => return Err(self.program.failure(format!("printed {:?}", line.text))),
        }
        Ok(true)
    }

    /// Reads what it says until `seen` or its end.
    pub fn until(
        &mut self,
        deadline: Instant,
        seen: impl Fn(&GetReport) -> bool,
    ) -> Result<&GetReport, LabError> {
        while !seen(&self.report) && self.step(deadline)? {}
        Ok(&self.report)
    }

    /// Waits for its end.
    pub fn finish(mut self, deadline: Instant) -> Result<GetReport, LabError> {
        self.until(deadline, |_| false)?;
        self.report.exit = self.program.wait(deadline)?.code();
        self.report.errors += &std::fs::read_to_string(self.program.log()).unwrap_or_default();
        Ok(self.report)
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Result<GetReport, LabError> {
        self.program.kill()?;
        Ok(self.report)
    }
}

impl GetReport {
    fn note(&mut self, event: &Value) {
        let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or_default();
        let at = Duration::from_millis(number("t_ms"));
        match event.get("event").and_then(Value::as_str) {
            Some("relayed") => self.relayed = self.relayed.or(Some(at)),
            Some("direct") => self.direct = self.direct.or(Some(at)),
            Some("first_bytes") if self.first_bytes.is_none() => {
                let path = event
                    .get("path")
                    .and_then(Value::as_str)
                    .unwrap_or("unknown");
                self.first_bytes = Some((at, path.to_owned()));
            }
            Some("waiting_for_direct") => self.waiting_for_direct = Some(number("allowed")),
            Some("done") => {
                self.done = Some(Done {
                    bytes: number("bytes"),
                    relayed: number("relayed_bytes"),
                    direct: number("direct_bytes"),
                    local: number("local_bytes"),
                    resumed: number("resumed_bytes"),
                    elapsed: Duration::from_millis(number("elapsed_ms")),
                });
            }
            Some("error") => {
                self.errors += event
                    .get("message")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                self.errors.push('\n');
            }
            // Progress and what later versions add.
            _ => {}
        }
    }
}
