//! The parent: keeps the model, kills, counts.

use super::model::{Operation, Task};
use super::{Error, Random, TASKS, now_ms};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// `crash-soak`.
#[derive(Debug, Clone, clap::Args)]
pub struct Soak {
    /// How often a child is killed; the stores take turns
    #[arg(long, default_value_t = 25)]
    pub kills: u64,
    /// Decides what the children do and when they are killed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Which stores
    #[arg(long, value_enum, default_value_t = Stores::Both)]
    pub stores: Stores,
    /// Where the stores are made and removed again; default: the system's temporary directory
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// What the children work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stores {
    /// A disk tier that holds everything.
    Disk,
    /// A disk tier that holds half of it, above a cold tier.
    Cold,
    /// One of each.
    Both,
}

impl Stores {
    /// Whether each store has a cold tier.
    fn cold(self) -> &'static [bool] {
        match self {
            Self::Disk => &[false],
            Self::Cold => &[true],
            Self::Both => &[false, true],
        }
    }
}

/// The cold tier counts in whole seconds: see [`State::early_ms`](super::model::State::early_ms).
const EARLY_MS: u64 = 1000;

/// Longer than any child is silent before its load begins, or while it works.
const SILENCE: Duration = Duration::from_secs(60);

/// When a child is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after it began to open the store.
    Opening(Duration),
    /// So long after it began to work.
    Working(Duration),
    /// With so many operations answered, at once.
    Answered(u64),
    /// So long after a garbage collection began.
    Collecting(Duration),
}

impl Moment {
    fn choose(random: &mut Random) -> Self {
        let micros = |most| Duration::from_micros(most);
        match random.below(20) {
            0..4 => Self::Opening(micros(random.below(20_000))),
            4..10 => Self::Working(micros(random.below(150_000))),
            10..16 => Self::Answered(1 + random.below(400)),
            _ => Self::Collecting(micros(random.below(8_000))),
        }
    }
}

/// A store and what it must hold.
struct Store {
    directory: PathBuf,
    cold: bool,
    tasks: Vec<Task>,
    generation: u64,
}

/// What happened.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    kills: u64,
    while_opening: u64,
    answers: u64,
    comparisons: u64,
}

impl Soak {
    /// Kills as often as it should, and checks.
    ///
    /// # Errors
    ///
    /// The first thing that was acknowledged and is not there, or is there and should not; the stores stay then.
    pub fn run(self) -> Result<(), Error> {
        let parent = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new()
            .prefix("anypath-crash-soak-")
            .tempdir_in(parent)?;
        let mut stores: Vec<Store> = self
            .stores
            .cold()
            .iter()
            .map(|&cold| Store {
                directory: directory
                    .path()
                    .join(if cold { "with-cold" } else { "disk" }),
                cold,
                tasks: (0..TASKS)
                    .map(|_| {
                        let mut task = Task::default();
                        task.state.early_ms = if cold { EARLY_MS } else { 0 };
                        task
                    })
                    .collect(),
                generation: 0,
            })
            .collect();
        let (mut totals, mut random) = (Totals::default(), Random::new(&[self.seed]));
        println!("seed {}, {} kills", self.seed, self.kills);
        let result = self.soak(&mut stores, &mut random, &mut totals);
        if let Err(error) = result {
            let kept = directory.keep();
            return Err(format!(
                "after {} kills with --seed {}: {error}; the stores are in {}",
                totals.kills,
                self.seed,
                kept.display()
            )
            .into());
        }
        println!(
            "{} kills, {} of them while opening, {} operations acknowledged, {} comparisons of everything: 0 acknowledged operations lost",
            totals.kills, totals.while_opening, totals.answers, totals.comparisons
        );
        Ok(())
    }

    fn soak(
        &self,
        stores: &mut [Store],
        random: &mut Random,
        totals: &mut Totals,
    ) -> Result<(), Error> {
        while totals.kills < self.kills {
            let turn = usize::try_from(totals.kills)? % stores.len();
            let store = stores.get_mut(turn).ok_or("no store")?;
            store.generation(self.seed, Some(Moment::choose(random)), totals)?;
            if totals.kills.is_multiple_of(100) {
                println!("{totals:?}");
            }
        }
        for store in stores {
            store.generation(self.seed, None, totals)?;
        }
        Ok(())
    }
}

impl Store {
    /// One child, from its start to its death; without a moment, it only compares.
    fn generation(
        &mut self,
        seed: u64,
        moment: Option<Moment>,
        totals: &mut Totals,
    ) -> Result<(), Error> {
        let (mut child, lines) = self.start(seed, moment.is_none())?;
        self.generation += 1;
        let result = self.watch(&mut child, &lines, moment, totals);
        // It may have ended by itself, and badly.
        let _ = child.kill();
        child.wait()?;
        if result? {
            totals.kills += 1;
        }
        // What it said before it died.
        for line in lines {
            self.hear(&line?, totals)?;
        }
        Ok(())
    }

    fn start(
        &self,
        seed: u64,
        only_check: bool,
    ) -> Result<(Child, Receiver<std::io::Result<String>>), Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("child")
            .args(["--seed", &seed.to_string()])
            .args(["--generation", &self.generation.to_string()])
            .arg("--directory")
            .arg(&self.directory);
        if self.cold {
            command.arg("--cold");
        }
        if only_check {
            command.arg("--only-check");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let lines = lines(stdout);
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(serde_json::to_string(&self.tasks)?.as_bytes())?;
        Ok((child, lines))
    }

    /// Hears the child until it is to be killed, and kills it: true. False: it ended as it should.
    fn watch(
        &mut self,
        child: &mut Child,
        lines: &Receiver<std::io::Result<String>>,
        moment: Option<Moment>,
        totals: &mut Totals,
    ) -> Result<bool, Error> {
        let mut deadline: Option<Instant> = None;
        let (mut answers, mut verified) = (0, false);
        loop {
            let line = match deadline {
                None => match lines.recv_timeout(SILENCE) {
                    Err(RecvTimeoutError::Timeout) => {
                        return Err(format!("a child said nothing for {SILENCE:?}").into());
                    }
                    other => other,
                },
                Some(at) => lines.recv_timeout(at.saturating_duration_since(clock())),
            };
            let line = match line {
                Ok(line) => line?,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    let status = child.wait()?;
                    return if moment.is_none() && verified && status.success() {
                        Ok(false)
                    } else {
                        Err(format!("a child ended by itself ({status})").into())
                    };
                }
            };
            self.hear(&line, totals)?;
            verified |= line == "verified";
            answers += u64::from(line.starts_with("end "));
            let due = match moment {
                Some(Moment::Opening(after)) if line == "opening" => Some(after),
                Some(Moment::Working(after)) if line == "verified" => Some(after),
                Some(Moment::Answered(count)) if answers == count => Some(Duration::ZERO),
                Some(Moment::Collecting(after))
                    if line.starts_with("begin ") && line.ends_with("\"Gc\"") =>
                {
                    Some(after)
                }
                _ => None,
            };
            if let Some(after) = due.filter(|_| deadline.is_none()) {
                deadline = Some(clock() + after);
            }
        }
        totals.while_opening += u64::from(!verified);
        child.kill()?;
        Ok(true)
    }

    fn hear(&mut self, line: &str, totals: &mut Totals) -> Result<(), Error> {
        let now = now_ms();
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("violation"), _, _) => return Err(line.into()),
            (Some("verified"), _, _) => totals.comparisons += 1,
            (Some("begin"), Some(task), Some(rest)) => {
                let (began, operation) = rest.split_once(' ').ok_or("a line is cut")?;
                let (began, operation): (u64, Operation) = (began.parse()?, operation.parse()?);
                self.task(task)?
                    .begin(operation, began)
                    .map_err(|error| format!("task {task}: {error}"))?;
            }
            (Some("end"), Some(task), Some(answer)) => {
                totals.answers += 1;
                self.task(task)?
                    .answer(now, answer == "ok")
                    .map_err(|error| format!("task {task}: {error}"))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn task(&mut self, number: &str) -> Result<&mut Task, Error> {
        let number: usize = number.parse()?;
        self.tasks
            .get_mut(number)
            .ok_or_else(|| format!("no task {number}").into())
    }
}

fn clock() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "the moment of a kill is a moment in the real world"
    )]
    Instant::now()
}

fn lines(stdout: ChildStdout) -> Receiver<std::io::Result<String>> {
    let (sender, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
