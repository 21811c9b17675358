//! Entering namespaces of the lab's own, so that nothing it does can leave or survive it.
//!
//! The program re-executes itself under `unshare` with a new user, network, mount and process
//! namespace. Inside, it is root over its own network only; when the outer program ends, however it
//! ends, the inner one reads the end of its standard input and exits, and with the first process of
//! a process namespace the kernel ends all others.

use super::LabError;
use std::any::type_name;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::{env, fs, io, process, thread};

/// Set in the re-executed program.
const INSIDE: &str = "ANYPATH_LAB_INSIDE";
/// How a test that ran inside reports success: libtest exits with 0 also when no test matched.
const PASSED: i32 = 42;
/// Exit code when the outer program has gone.
const ORPHANED: i32 = 131;

/// Ways into the sandbox, best first. Without a process namespace (where `/proc` cannot be mounted)
/// processes are ended by their handles alone.
const WAYS: [&[&str]; 4] = [
    &["-Urnm", "--fork", "--kill-child", "--pid", "--mount-proc"],
    &["-Urnm", "--fork", "--kill-child"],
    &["-nm", "--fork", "--kill-child", "--pid", "--mount-proc"],
    &["-nm", "--fork", "--kill-child"],
];

/// Whether this process is inside a lab's namespaces.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Returns once this process is inside: the outer program re-executes itself with its own arguments,
/// waits, and exits with the inner one's code. Call it first in `main`.
pub fn enter() -> Result<(), LabError> {
    if is_inside() {
        return prepare();
    }
    let status = re_execute(env::args_os().skip(1))?;
    process::exit(status.code().unwrap_or(1));
}

/// Runs the calling `#[test]` alone inside a sandbox: the outer test starts this executable again for
/// that one test. Tests of one binary take turns, because their timings need a quiet machine.
///
/// `test` must be a closure written directly in the test function, whose name it carries.
///
/// # Panics
/// When the namespaces cannot be entered or the inner test fails.
pub fn isolated<F: FnOnce()>(test: F) {
    static TURN: Mutex<()> = Mutex::new(());
    if is_inside() {
        if let Err(error) = prepare() {
            panic!("{}", super::explain(&error));
        }
        test();
        process::exit(PASSED);
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = type_name::<F>().trim_end_matches("::{{closure}}");
    let name = path.split_once("::").map_or(path, |(_crate, name)| name);
    let status = re_execute(["--exact", name, "--nocapture", "--test-threads=1"])
        .unwrap_or_else(|error| panic!("{}", super::explain(&error)));
    assert_eq!(
        status.code(),
        Some(PASSED),
        "`{name}` failed inside the lab ({status})"
    );
}

fn re_execute(
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<ExitStatus, LabError> {
    let way = way_in()?;
    let program = env::current_exe().map_err(LabError::io("finding this executable"))?;
    let mut child = Command::new("unshare")
        .args(way)
        .arg(program)
        .args(arguments)
        .env(INSIDE, "1")
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|source| LabError::Tool {
            program: "unshare".into(),
            source,
        })?;
    // `wait` would close standard input, the very sign that this process is gone.
    let lifeline = child.stdin.take();
    let status = child.wait().map_err(LabError::io("waiting for the lab"));
    drop(lifeline);
    status
}

/// The first way whose mounts work: some systems grant a user namespace without any power in it.
fn way_in() -> Result<&'static [&'static str], LabError> {
    let root = nix::unistd::geteuid().is_root();
    let mut reason = String::new();
    for way in WAYS {
        let needs_root = !way.first().is_some_and(|flags| flags.contains('U'));
        if needs_root && !root {
            continue;
        }
        let output = Command::new("unshare")
            .args(way)
            .args(["sh", "-c", "mount -t tmpfs tmpfs /run && ip link set lo up"])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| LabError::Tool {
                program: "unshare".into(),
                source,
            })?;
        if output.status.success() {
            return Ok(way);
        }
        reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    Err(LabError::NoNamespaces { reason })
}

/// Once inside: a private `/run` for `ip netns`, loopback, and the watch on the outer program.
fn prepare() -> Result<(), LabError> {
    run("mount", ["-t", "tmpfs", "tmpfs", "/run"])?;
    fs::create_dir_all("/run/netns").map_err(LabError::file("/run/netns"))?;
    run("ip", ["link", "set", "lo", "up"])?;
    thread::spawn(|| {
        let mut byte = [0];
        while !matches!(io::stdin().read(&mut byte), Ok(0) | Err(_)) {}
        process::exit(ORPHANED);
    });
    Ok(())
}

/// Runs a tool to its end.
pub(crate) fn run(
    program: &str,
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<String, LabError> {
    let mut command = Command::new(program);
    command
        .args(arguments.into_iter().map(Into::into))
        .stdin(Stdio::null());
    complete(command, None)
}

/// Runs a prepared command to its end, with `input` on its standard input.
pub(crate) fn complete(mut command: Command, input: Option<&str>) -> Result<String, LabError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let tool = |source| LabError::Tool {
        program: program.clone(),
        source,
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().map_err(tool)?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        io::Write::write_all(&mut pipe, input.as_bytes()).map_err(tool)?;
    }
    let output = child.wait_with_output().map_err(tool)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LabError::Refused {
        command: format!("{command:?}"),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
