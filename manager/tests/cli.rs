//! The compiled command, in processes of their own, on loopback, with a home of their own: what a user sees.

#![cfg(all(feature = "cli", unix))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod content;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use content::content;
use serde_json::Value;

/// Reached only if something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine of its own: a home directory and what runs there.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, data: &[u8]) -> PathBuf {
        fs::write(self.path(name), data).unwrap();
        self.path(name)
    }

    /// The command with nothing of the real home.
    fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anypath"));
        command
            .env_clear()
            .env("HOME", self.0.path())
            .current_dir(self.0.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// The command on this home's data directory, as one JSON object a line.
    fn anypath(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(&["--json", "--data-dir"]);
        command.arg(self.path("data")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.anypath(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        lines(&output.stdout)
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.anypath(arguments).output().unwrap();
        assert!(
            !output.status.success(),
            "{arguments:?} must fail: {}",
            text(&output)
        );
        text(&output)
    }

    fn start(&self) -> Node {
        self.start_on(0)
    }

    fn start_on(&self, port: u16) -> Node {
        let listen = format!("/ip4/127.0.0.1/tcp/{port}");
        Node::spawn(self.anypath(&[
            "start",
            "--private",
            "--no-mdns",
            "--port",
            "0",
            "--listen",
            &listen,
        ]))
    }

    /// `get` with a node of its own.
    fn get(&self, cid: &str, peer: &str, output: &Path) -> Command {
        let mut command = self.anypath(&[
            "get",
            cid,
            "--private",
            "--no-mdns",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
        ]);
        command.args(["--peer", peer, "-o"]).arg(output);
        command
    }

    fn part_length(&self, output: &str) -> u64 {
        let parts = fs::read_dir(self.0.path()).unwrap().map(Result::unwrap);
        parts
            .filter(|entry| {
                let name = entry.file_name().into_string().unwrap();
                name.starts_with(output) && name.ends_with(".part")
            })
            .map(|entry| entry.metadata().unwrap().len())
            .sum()
    }
}

/// A node that has said that it started; killed with the test.
struct Node {
    process: Child,
    output: BufReader<ChildStdout>,
    started: Value,
}

impl Node {
    fn spawn(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let started: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("no event: {line:?}"));
        assert_eq!(started["event"], "started", "{started}");
        Self {
            process,
            output,
            started,
        }
    }

    fn peer_id(&self) -> &str {
        self.started["peer_id"].as_str().unwrap()
    }

    fn address(&self) -> &str {
        self.started["listen"][0].as_str().unwrap()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn ended(&mut self) -> bool {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        self.process.wait().unwrap().success()
    }

    /// Sends a raw HTTP request and returns status and body.
    fn http(&self, head: &str, body: &str) -> (u16, String) {
        let address = self.started["api"]
            .as_str()
            .unwrap()
            .strip_prefix("http://")
            .unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lines(output: &[u8]) -> Vec<Value> {
    output
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Polls until `condition` holds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "processes run in real time")]
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        #[expect(clippy::disallowed_methods, reason = "processes run in real time")]
        let now = Instant::now();
        assert!(now < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ports that nobody listens on at the moment, each another one.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

#[test]
fn a_file_added_on_one_machine_is_fetched_on_another_by_cid_and_peer() {
    let (serving, getting) = (Home::new(), Home::new());
    let data = content(47_198_265);
    let file = serving.write("file", &data);
    let node = serving.start();

    let plain = serving
        .bare(&["--data-dir", "data", "add"])
        .arg(&file)
        .output()
        .unwrap();
    let cid = "bafybeibkzoxjmwrqs5sflrck3rwfgrmxsewtclwy7lorn7gypmzef6o7ya";
    assert_eq!(
        String::from_utf8_lossy(&plain.stdout),
        format!("{cid}\n"),
        "{}",
        text(&plain)
    );
    let added = &serving.run(&["add", "file"])[0];
    assert_eq!(
        (&added["cid"], &added["bytes"]),
        (&cid.into(), &data.len().into())
    );
    assert_eq!(added["address"], node.address());

    let output = getting.path("out");
    let got = getting.get(cid, node.address(), &output).output().unwrap();
    assert!(got.status.success(), "{}", text(&got));
    assert_eq!(fs::read(&output).unwrap(), data);
    let events = lines(&got.stdout);
    let names: Vec<_> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"direct") && names.contains(&"first_bytes"),
        "{names:?}"
    );
    let done = events.last().unwrap();
    assert_eq!(
        (&done["event"], &done["cid"]),
        (&"done".into(), &cid.into())
    );
    assert_eq!(done["bytes"], data.len());
    assert!(
        done["direct_bytes"].as_u64().unwrap() > data.len() as u64 && done["relayed_bytes"] == 0,
        "{done}"
    );

    // A second time: it exists. And under another name it is in the store already.
    let refused = getting.get(cid, node.address(), &output).output().unwrap();
    assert!(
        !refused.status.success() && text(&refused).contains("--force"),
        "{}",
        text(&refused)
    );
    drop(node);
    let again = getting
        .get(cid, "/ip4/127.0.0.1/tcp/1", &getting.path("again"))
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(lines(&again.stdout).last().unwrap()["direct_bytes"], 0);
}

#[test]
fn commands_go_through_the_running_node() {
    let (serving, getting) = (Home::new(), Home::new());
    let data = content(3_000_000);
    serving.write("file", &data);
    let (server, mut getter) = (serving.start(), getting.start());
    let cid = serving.run(&["add", "file"])[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();

    assert_eq!(getting.run(&["id"])[0]["peer_id"], getter.peer_id());
    assert_eq!(
        getting.run(&["connect", server.address()])[0]["peer_id"],
        server.peer_id()
    );
    let peers = &getting.run(&["peers"])[0];
    assert_eq!(peers[0]["peer_id"], server.peer_id());
    assert_eq!(peers[0]["connections"][0]["path"], "direct");
    let status = &getting.run(&["status"])[0];
    assert_eq!(
        (&status["peer_id"], &status["connections"]["direct"]),
        (&getter.peer_id().into(), &1.into())
    );

    // A relative output is the client's, not the node's.
    fs::create_dir(getting.path("elsewhere")).unwrap();
    let mut get = getting.anypath(&["get", &cid, "-o", "out"]);
    let got = get.current_dir(getting.path("elsewhere")).output().unwrap();
    assert!(got.status.success(), "{}", text(&got));
    assert_eq!(fs::read(getting.path("elsewhere/out")).unwrap(), data);
    assert_eq!(lines(&got.stdout).last().unwrap()["bytes"], data.len());

    getting.run(&["shutdown"]);
    assert!(getter.ended(), "a clean end");
    assert!(!getting.path("data/api.json").exists());
    assert!(getting.fails(&["status"]).contains("start one with"));
}

#[test]
fn what_one_publishes_another_who_is_subscribed_prints() {
    let (here, there) = (Home::new(), Home::new());
    let (publisher, listener) = (here.start(), there.start());
    let unheard = here.fails(&["publish", "news", "x"]);
    assert!(unheard.contains("nobody listens"), "{unheard}");
    let mut subscribe = there
        .anypath(&["subscribe", "news", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(subscribe.stdout.take().unwrap());
    let mut line = || -> Value {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(line()["event"], "subscribed");
    here.run(&["connect", listener.address()]);
    let message = r#"{"task_cid": "bafy1", "timestamp": 1.5}"#;
    eventually("a listener", || {
        let published = here.anypath(&["publish", "news", message]).output();
        published.unwrap().status.success()
    });
    let heard = line();
    assert_eq!(heard["from"], publisher.peer_id());
    assert_eq!(
        (&heard["text"], &heard["json"]["task_cid"]),
        (&message.into(), &"bafy1".into())
    );
    let mut publish = here.anypath(&["publish", "news", "-"]);
    let mut publish = publish
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    publish
        .stdin
        .take()
        .unwrap()
        .write_all(b"plain \x1b[31mtext")
        .unwrap();
    assert!(publish.wait().unwrap().success());
    let heard = line();
    assert_eq!(heard["text"], "plain \u{1b}[31mtext");
    assert!(heard.get("json").is_none());
    assert!(subscribe.wait().unwrap().success(), "it ends after two");
    let error = there.fails(&["subscribe", "_peer-discovery._p2p._pubsub"]);
    assert!(error.contains("none of the discovery's own"), "{error}");
}

#[test]
fn a_directory_is_added_with_and_without_a_node_and_fetched_by_another_machine() {
    let (serving, getting) = (Home::new(), Home::new());
    fs::create_dir_all(serving.path("tree/sub")).unwrap();
    for name in ["tree/odd name ü.txt", "tree/sub/a", "tree/.hidden"] {
        serving.write(name, name.as_bytes());
    }
    let alone = &serving.run(&["add", "tree"])[0];
    assert_eq!(
        (&alone["files"], &alone["left_out"]),
        (&2.into(), &1.into())
    );
    let node = serving.start();
    let added = &serving.run(&["add", "tree"])[0];
    assert_eq!(added["cid"], alone["cid"]);
    assert_eq!(added["address"], node.address());
    let all = &serving.run(&["add", "tree", "--hidden"])[0];
    assert_eq!(all["files"], 3);

    let output = getting.path("out");
    let cid = all["cid"].as_str().unwrap();
    let get = getting.get(cid, node.address(), &output).output().unwrap();
    assert!(get.status.success(), "{}", text(&get));
    let done = &lines(&get.stdout).pop().unwrap();
    assert_eq!(
        (&done["event"], &done["files"]),
        (&"done".into(), &3.into())
    );
    for name in ["odd name ü.txt", "sub/a", ".hidden"] {
        let content = fs::read_to_string(output.join(name)).unwrap();
        assert_eq!(content, format!("tree/{name}"));
    }
    // And through a node that runs already, which writes the directory itself.
    let fetching = getting.start();
    let through = getting.path("through");
    let cid = added["cid"].as_str().unwrap();
    let arguments = ["get", cid, "--peer", node.address(), "-o", "through"];
    let events = getting.run(&arguments);
    assert_eq!(events.last().unwrap()["files"], 2, "{events:?}");
    assert!(through.join("sub/a").is_file() && !through.join(".hidden").exists());
    let again = getting.fails(&[&arguments[..], &["--force"]].concat());
    assert!(again.contains("choose another name"), "{again}");
    drop(fetching);
    // What cannot be added is named, with and without a node.
    let socket = std::os::unix::net::UnixListener::bind(serving.path("tree/socket")).unwrap();
    let error = serving.fails(&["add", "tree"]);
    assert!(error.contains("tree/socket"), "{error}");
    drop((node, socket));
    let error = serving.fails(&["add", "tree"]);
    assert!(error.contains("tree/socket"), "{error}");
}

#[test]
fn a_private_network_is_joined_with_the_key_in_the_data_directory() {
    let (member, other, outsider) = (Home::new(), Home::new(), Home::new());
    let key = member.bare(&["swarm-key"]).output().unwrap();
    assert!(key.status.success(), "{}", text(&key));
    for home in [&member, &other] {
        fs::create_dir_all(home.path("data")).unwrap();
        fs::write(home.path("data/swarm.key"), &key.stdout).unwrap();
    }
    fs::write(outsider.path("wrong.key"), "no key").unwrap();
    let node = member.start();
    member.write("file", b"for members");
    let added = &member.run(&["add", "file"])[0];
    let cid = added["cid"].as_str().unwrap();
    let get = other.get(cid, node.address(), &other.path("out")).output();
    let get = get.unwrap();
    assert!(get.status.success(), "{}", text(&get));
    assert_eq!(fs::read(other.path("out")).unwrap(), b"for members");

    let running = outsider.start();
    let error = outsider.fails(&["connect", node.address()]);
    assert!(error.contains("cannot reach"), "{error}");
    let member_to_outsider = member.fails(&["connect", running.address()]);
    assert!(
        member_to_outsider.contains("the same swarm key"),
        "{member_to_outsider}"
    );
    drop(running);
    let error = outsider.fails(&["start", "--swarm-key-file", "wrong.key"]);
    assert!(
        error.contains("wrong.key") && error.contains("anypath swarm-key"),
        "{error}"
    );
    let quic = ["start", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let error = other.fails(&quic);
    assert!(error.contains("TCP or WebSocket"), "{error}");
}

#[test]
fn the_webrtc_address_is_the_same_after_a_restart_and_a_damaged_certificate_is_told_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    let start = [
        "start",
        "--private",
        "--no-mdns",
        "--no-port-mapping",
        "--port",
        "0",
        "--p2p-port",
        "0",
        "--webrtc-port",
        "0",
    ];
    let hash = || {
        let node = Node::spawn(home.anypath(&start));
        let listen = node.started["listen"].as_array().unwrap();
        let webrtc = listen.iter().filter_map(Value::as_str).find_map(|address| {
            let (_, hash) = address.split_once("/webrtc-direct/certhash/")?;
            Some(hash.split('/').next().unwrap().to_owned())
        });
        let status = &home.run(&["status"])[0];
        let webrtc = webrtc.unwrap();
        assert!(status.to_string().contains(&webrtc), "{status}");
        webrtc
    };
    assert_eq!(hash(), hash());
    let certificate = home.path("data/webrtc.pem");
    let mode = fs::metadata(&certificate).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::write(&certificate, "damaged").unwrap();
    let error = home.fails(&start);
    assert!(
        error.contains("webrtc.pem") && error.contains("move it away"),
        "{error}"
    );
}

#[test]
fn a_server_that_is_killed_and_started_again_serves_the_rest() {
    let (serving, getting) = (Home::new(), Home::new());
    let data = content(64_000_000);
    serving.write("file", &data);
    let cid = serving.run(&["add", "file"])[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    let [port] = free_ports();
    let server = serving.start_on(port);
    let address = server.address().to_owned();

    let mut get = getting
        .get(&cid, &address, &getting.path("out"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the first bytes", || getting.part_length("out") > 0);
    server.kill();
    assert!(!getting.path("out").exists(), "only a part has arrived");
    let _server = serving.start_on(port);
    assert!(get.wait().unwrap().success());
    assert!(
        fs::read(getting.path("out")).unwrap() == data,
        "other bytes came out"
    );
}

#[test]
fn a_getter_that_is_killed_continues_from_what_it_has() {
    let (serving, getting) = (Home::new(), Home::new());
    let data = content(64_000_000);
    serving.write("file", &data);
    let server = serving.start();
    let cid = serving.run(&["add", "file"])[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();

    let mut get = getting
        .get(&cid, server.address(), &getting.path("out"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the first bytes", || getting.part_length("out") > 8_000_000);
    get.kill().unwrap();
    get.wait().unwrap();
    assert!(
        !getting.path("out").exists(),
        "no half file under the final name"
    );

    let got = getting
        .get(&cid, server.address(), &getting.path("out"))
        .output()
        .unwrap();
    assert!(got.status.success(), "{}", text(&got));
    assert!(
        fs::read(getting.path("out")).unwrap() == data,
        "other bytes came out"
    );
    let done = lines(&got.stdout).pop().unwrap();
    assert!(
        done["resumed_bytes"].as_u64().unwrap() >= 7_900_000,
        "{done}"
    );
    assert!(
        done["direct_bytes"].as_u64().unwrap() < data.len() as u64 - 7_900_000,
        "{done}"
    );
    assert_eq!(getting.part_length("out"), 0);
}

#[test]
fn a_second_node_on_the_same_data_directory_is_told_what_to_do() {
    let home = Home::new();
    let _node = home.start();
    let error = home.fails(&["start", "--private", "--no-mdns", "--port", "0"]);
    assert!(
        error.contains("another node uses the data directory") && error.contains("--port"),
        "{error}"
    );
}

#[test]
fn two_instances_of_one_user_find_each_other_within_five_seconds() {
    let home = Home::new();
    let ports = free_ports::<2>().map(|port| port.to_string());
    let start =
        |port: &str| Node::spawn(home.bare(&["--json", "start", "--private", "--port", port]));
    let nodes = [start(&ports[0]), start(&ports[1])];
    #[expect(clippy::disallowed_methods, reason = "processes run in real time")]
    let begin = Instant::now();
    for (port, other) in [(&ports[0], &nodes[1]), (&ports[1], &nodes[0])] {
        eventually("the two are connected", || {
            let peers = home
                .bare(&["--json", "peers", "--port", port])
                .output()
                .unwrap();
            String::from_utf8_lossy(&peers.stdout).contains(other.peer_id())
        });
    }
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn an_api_port_in_use_is_named_with_a_way_out() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = home.fails(&["start", "--private", "--no-mdns", "--port", &port]);
    assert!(
        error.contains(&port) && error.contains("in use") && error.contains("--port"),
        "{error}"
    );
}

#[test]
fn sigterm_ends_a_node_cleanly() {
    let home = Home::new();
    let mut node = home.start();
    assert!(home.path("data/api.json").exists());
    node.terminate();
    assert!(node.ended());
    assert!(!home.path("data/api.json").exists());
}

#[test]
fn what_a_killed_node_has_left_is_in_nobodys_way() {
    let home = Home::new();
    home.write("file", b"data");
    home.start().kill();
    assert!(home.path("data/api.json").exists());
    assert!(home.fails(&["status"]).contains("no node is running"));
    assert_eq!(home.run(&["add", "file"])[0]["bytes"], 4);
    let mut node = home.start();
    node.terminate();
    assert!(node.ended());
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let home = Home::new();
    let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    for (arguments, expected) in [
        (&["add", "missing"][..], "cannot read missing"),
        (&["peers"], "start one with `anypath start`"),
        (&["get", "no-cid"], "invalid value 'no-cid'"),
        (
            &["get", cid, "--peer", "no-address"],
            "invalid value 'no-address'",
        ),
        (&["get", cid, "-o", "missing/out"], "does not exist"),
        (&["start", "--relay", "no-address"], "the flag --relay"),
        (
            &["start", "--relay", "/ip4/127.0.0.1/tcp/1"],
            "/p2p/<peer id of the relay>",
        ),
    ] {
        let error = home.fails(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    fs::create_dir_all(home.path("data")).unwrap();
    home.write("data/config.toml", b"disk_capacty = 1");
    let error = home.fails(&["start"]);
    assert!(
        error.contains("disk_capacty")
            && error.contains("disk_capacity, ")
            && error.contains("config.toml"),
        "{error}"
    );
}

#[test]
fn a_file_that_does_not_fit_is_refused_before_it_is_written() {
    let home = Home::new();
    let file = fs::File::create(home.path("large")).unwrap();
    file.set_len(1 << 30).unwrap();
    for node in [None, Some(())] {
        let config = "disk_capacity = \"64MiB\"";
        fs::create_dir_all(home.path("data")).unwrap();
        home.write("data/config.toml", config.as_bytes());
        let _node = node.map(|()| home.start());
        let error = home.fails(&["add", "large"]);
        assert!(
            error.contains("disk_capacity") && error.contains("1074805776"),
            "{error}"
        );
    }
}

#[test]
fn the_api_answers_this_machine_only_and_changes_need_the_token() {
    let home = Home::new();
    let node = home.start();
    let api: Value =
        serde_json::from_slice(&fs::read(home.path("data/api.json")).unwrap()).unwrap();
    let token = api["token"].as_str().unwrap();
    let local = "Host: localhost:9000";

    let (status, body) = node.http(&format!("GET /api/status HTTP/1.1\r\n{local}"), "");
    assert_eq!(status, 200);
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["peer_id"],
        node.peer_id()
    );
    for path in ["/", "/dashboard"] {
        let (status, page) = node.http(&format!("GET {path} HTTP/1.1\r\n{local}"), "");
        assert!(
            status == 200 && page.contains(node.peer_id()) && page.starts_with("<!doctype html>"),
            "{page}"
        );
    }
    for path in ["/api/peers", "/api/mcp/peers"] {
        assert_eq!(
            node.http(&format!("GET {path} HTTP/1.1\r\n{local}"), ""),
            (200, "[]".to_owned())
        );
    }
    let (status, metrics) = node.http(&format!("GET /metrics HTTP/1.1\r\n{local}"), "");
    assert!(
        status == 200 && metrics.trim_end().ends_with("# EOF"),
        "{metrics}"
    );

    for path in ["/", "/api/status", "/api/peers", "/metrics"] {
        let (status, body) = node.http(&format!("GET {path} HTTP/1.1\r\nHost: evil.example"), "");
        assert_eq!(status, 403, "{path}");
        assert!(!body.contains(node.peer_id()));
    }
    for path in ["/api/add", "/api/get", "/api/connect", "/api/shutdown"] {
        assert_eq!(
            node.http(&format!("POST {path} HTTP/1.1\r\n{local}"), "{}")
                .0,
            401,
            "{path}"
        );
        let wrong = format!(
            "POST {path} HTTP/1.1\r\n{local}\r\nAuthorization: Bearer {}",
            "0".repeat(64)
        );
        assert_eq!(node.http(&wrong, "{}").0, 401, "{path}");
        let foreign =
            format!("POST {path} HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {token}");
        assert_eq!(node.http(&foreign, "{}").0, 403, "{path}");
    }
    let authorised =
        format!("{local}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json");
    let post =
        |path: &str, body: &str| node.http(&format!("POST {path} HTTP/1.1\r\n{authorised}"), body);
    assert_eq!(
        post("/api/get", &" ".repeat(65 * 1024)).0,
        413,
        "a body of JSON has a limit"
    );
    let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    assert_eq!(
        post(
            "/api/get",
            &format!("{{\"cid\":\"{cid}\",\"output\":\"out\"}}")
        )
        .0,
        400,
        "a relative path"
    );
    assert_eq!(post("/api/shutdown", "{}").0, 200);
    let mut node = node;
    assert!(node.ended());
}

#[test]
fn a_file_larger_than_the_store_streams_through() {
    let (serving, getting) = (Home::new(), Home::new());
    let data = content(90_000_000);
    serving.write("file", &data);
    let server = serving.start();
    let cid = serving.run(&["add", "file"])[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    fs::create_dir_all(getting.path("data")).unwrap();
    getting.write("data/config.toml", b"disk_capacity = \"64MiB\"");
    let got = getting
        .get(&cid, server.address(), &getting.path("out"))
        .output()
        .unwrap();
    assert!(got.status.success(), "{}", text(&got));
    assert!(
        fs::read(getting.path("out")).unwrap() == data,
        "other bytes came out"
    );
}
