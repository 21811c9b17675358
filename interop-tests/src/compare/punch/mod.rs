//! Our hole punching against stock libp2p-dcutr: every pair of NATs, in the lab. Each run is a lab of its own, with a relay, a
//! listener and a dialer as processes; several run at the same time.

mod cells;
mod node;
mod picture;
mod record;

use super::figure::Figure;
use super::{Effort, Error};
use crate::lab::{self, LabError, Program, explain, now};
use cells::{Cell, Job, Scene, Side};
use libp2p::PeerId;
use record::{Record, Run};
use std::io::BufRead as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The relay's address in every lab.
const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);

/// No process of a run says nothing for so long.
const SILENCE: Duration = Duration::from_secs(40);

/// Whose punching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Implementation {
    /// anypath-holepunch.
    Ours,
    /// libp2p-dcutr.
    Stock,
}

impl Implementation {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Stock => "stock",
        }
    }
}

/// `punch …`
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// Only figures whose name begins so, such as `punch.quic.port`
    #[arg(long)]
    only: Option<String>,
    /// Remembers every run in this file, and goes on where it ends
    #[arg(long)]
    state: Option<PathBuf>,
    /// Labs at the same time
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Draws the pairs of NATs into this file, as SVG
    #[arg(long)]
    picture: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: None,
            state: None,
            jobs: 4,
            picture: None,
        }
    }
}

/// `endpoint punch …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Task {
    /// All measurements, inside the lab; prints a figure a line.
    Lab {
        /// Fewer runs.
        #[arg(long)]
        quick: bool,
        /// Which, and how.
        #[command(flatten)]
        options: Options,
    },
    /// Relays; prints `listening <peer id>`.
    Relay {
        /// Its public address.
        address: Ipv4Addr,
    },
    /// Reserves; prints `reserved <peer id>`.
    Listen {
        /// Who punches.
        implementation: Implementation,
        /// How.
        #[command(flatten)]
        setup: node::Setup,
    },
    /// Dials through the relay; prints `direct <nanoseconds>` and `left <connections>`, or `failed <nanoseconds>`.
    Dial {
        /// Who punches.
        implementation: Implementation,
        /// How.
        #[command(flatten)]
        setup: node::Setup,
        /// Whom.
        peer: PeerId,
    },
}

impl Task {
    /// Runs the endpoint.
    ///
    /// # Errors
    ///
    /// Any failure of the network.
    pub async fn run(self) -> Result<(), Error> {
        use anypath_holepunch::Behaviour as Ours;
        use libp2p::dcutr::Behaviour as Stock;
        match self {
            Self::Lab { quick, options } => {
                lab::enter()?;
                let effort = if quick { Effort::Quick } else { Effort::Full };
                in_lab(&options, effort)
            }
            Self::Relay { address } => node::relay(address).await,
            Self::Listen {
                implementation,
                setup,
            } => match implementation {
                Implementation::Ours => node::listen::<Ours>(setup).await,
                Implementation::Stock => node::listen::<Stock>(setup).await,
            },
            Self::Dial {
                implementation,
                setup,
                peer,
            } => match implementation {
                Implementation::Ours => node::dial::<Ours>(setup, peer).await,
                Implementation::Stock => node::dial::<Stock>(setup, peer).await,
            },
        }
    }
}

/// All figures of this area: another process enters the lab and tells them.
pub(super) fn measure(
    options: &Options,
    effort: Effort,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["endpoint", "punch", "lab", "--jobs"]);
    command.arg(options.jobs.to_string());
    if let Some(only) = &options.only {
        command.args(["--only", only]);
    }
    if let Some(state) = &options.state {
        command.arg("--state").arg(state);
    }
    if let Some(picture) = &options.picture {
        command.arg("--picture").arg(picture);
    }
    if effort == Effort::Quick {
        command.arg("--quick");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("the lab has no stdout")?;
    for line in std::io::BufReader::new(output).lines() {
        report(serde_json::from_str(&line?)?);
    }
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the lab ended early ({status})").into())
    }
}

/// Does what is left to do, several at a time, and prints the figures.
fn in_lab(options: &Options, effort: Effort) -> Result<(), Error> {
    let cells: Vec<Cell> = cells::all()
        .into_iter()
        .filter(|cell| {
            let only = options.only.as_deref().unwrap_or_default();
            cell.name.starts_with(only)
        })
        .collect();
    let record = Mutex::new(Record::open(options.state.as_deref())?);
    let jobs: Vec<Job<'_>> = cells
        .iter()
        .flat_map(|cell| {
            let record = record
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            cell.jobs(effort, |implementation| {
                record.count(&cell.name, implementation)
            })
        })
        .collect();
    eprintln!("compare: {} cells, {} runs to do", cells.len(), jobs.len());
    let directory = lab::scenario::scratch()?;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = run(job.scene, job.implementation, directory.path()).unwrap_or_else(
                        |error| {
                            let (cell, side) = (job.name, job.implementation.name());
                            eprintln!("compare: {cell} {side}: {}", explain(&error));
                            Run::broken()
                        },
                    );
                    let mut record = record
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    record.add(job.name, job.implementation, run);
                }
            });
        }
    });
    let record = record
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for cell in &cells {
        for figure in cell.figures(&record) {
            println!("{}", serde_json::to_string(&figure)?);
        }
    }
    if let Some(path) = &options.picture {
        std::fs::write(path, picture::draw(&record))?;
    }
    Ok(())
}

/// One punch between two fresh nodes behind fresh NATs.
fn run(scene: &Scene, implementation: Implementation, directory: &Path) -> Result<Run, LabError> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let network = scene.network(rand::random())?;
    let log = |name: &str| directory.join(format!("{number}-{name}"));
    let executable = std::env::current_exe().map_err(LabError::io("finding this executable"))?;
    let start = |host: &str, arguments: &[String]| {
        let mut command = Command::new(&executable);
        command.args(["endpoint", "punch"]).args(arguments);
        Program::start(network.host(host)?, &mut command, &log(host))
    };
    let text = |text: &str| text.to_owned();
    let relay = start("relay", &[text("relay"), RELAY.to_string()])?;
    let id = word(&relay, "listening")?;
    let transport = scene.transport;
    let address = format!("{}/p2p/{id}", node::relay_address(RELAY, transport));
    let mut servers = Vec::new();
    let mut programs = Vec::new();
    for (name, address) in scene.servers() {
        let server = start(name, &[text("relay"), address.to_string()])?;
        let id = word(&server, "listening")?;
        let address = node::relay_address(*address, transport);
        servers.extend([text("--server"), format!("{address}/p2p/{id}")]);
        programs.push(server);
    }
    let side = |role: &str, side: Side| {
        let mut arguments = vec![
            text(role),
            text("--late"),
            scene.late(side).as_millis().to_string(),
        ];
        arguments.extend(servers.iter().cloned());
        arguments.extend([
            text(implementation.name()),
            text(transport.name()),
            address.clone(),
        ]);
        arguments
    };
    let listener = start("listener", &side("listen", Side::Listener))?;
    let peer = word(&listener, "reserved")?;
    let mut arguments = side("dial", Side::Dialer);
    arguments.push(peer);
    let dialer = start("dialer", &arguments)?;
    let nanoseconds = |text: &str| Duration::from_nanos(text.trim().parse().unwrap_or(u64::MAX));
    let mut direct = None;
    loop {
        let Some(line) = dialer.line(now() + SILENCE)? else {
            return Err(dialer.failure("ended without a result"));
        };
        match line.text.split_once(' ') {
            Some(("direct", time)) => direct = Some(nanoseconds(time)),
            Some(("left", count)) => {
                return Ok(Run {
                    direct,
                    ended: direct.unwrap_or_default(),
                    left: count.trim().parse().unwrap_or(0),
                });
            }
            Some(("failed", time)) => {
                return Ok(Run {
                    direct: None,
                    ended: nanoseconds(time),
                    left: 0,
                });
            }
            _ => {}
        }
    }
}

/// What follows `word` on the line that begins with it.
fn word(program: &Program, word: &str) -> Result<String, LabError> {
    loop {
        let Some(line) = program.line(now() + SILENCE)? else {
            return Err(program.failure(format!("ended before `{word}`")));
        };
        if let Some((first, rest)) = line.text.split_once(' ')
            && first == word
        {
            return Ok(rest.trim().to_owned());
        }
    }
}
