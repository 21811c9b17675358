//! The child: opens what the last kill left, compares it with the model, and goes on.

use super::model::{
    BLOCKS, Operation, SETS, State, Task, VALUES, block, set_name, value_key, value_of,
};
use super::{Error, Random, TASKS, now_ms};
use anypath_tiered_store::{ColdConfig, Config, DeleteError, PinError, PutOptions, Store};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

/// `crash-soak child`.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    /// The store's directory.
    #[arg(long)]
    pub directory: PathBuf,
    /// Decides the operations, together with the generation.
    #[arg(long)]
    pub seed: u64,
    /// Number of the child.
    #[arg(long)]
    pub generation: u64,
    /// A small disk above a cold tier, so that blocks are demoted and promoted.
    #[arg(long)]
    pub cold: bool,
    /// End after the comparison.
    #[arg(long)]
    pub only_check: bool,
}

/// One line, in one write: it is there whole or not at all when the process is killed.
fn say(line: &str) -> Result<(), Error> {
    std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes())?;
    Ok(())
}

impl Load {
    /// Runs until it is killed.
    ///
    /// # Errors
    ///
    /// What the store has is not what was acknowledged, or an operation failed that must not.
    pub async fn run(self) -> Result<(), Error> {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        let tasks: Vec<Task> = serde_json::from_str(&text)?;
        say("opening")?;
        let store = Store::open(self.config()?).await?;
        say("opened")?;
        for (number, task) in (0..).zip(&tasks) {
            if let Err(error) = check(&store, number, task).await {
                say(&format!("violation task {number}: {error}"))?;
                return Err(error);
            }
        }
        say("verified")?;
        if self.only_check {
            store.close().await?;
            return Ok(());
        }
        let mut running = tokio::task::JoinSet::new();
        for (number, task) in (0..TASKS).zip(tasks) {
            let (load, store) = (self.clone(), store.clone());
            running.spawn(async move { load.work(&store, number, task).await });
        }
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended? {
                say(&format!("violation {error}"))?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn config(&self) -> Result<Config, Error> {
        // Without a cold tier nothing is ever evicted: all blocks of all tasks fit. With one, about half of them do.
        let capacity = if self.cold { 12 << 20 } else { 32 << 20 };
        let mut config = Config::builder()
            .path(self.directory.join("disk"))
            .memory_capacity(1 << 20)
            .disk_capacity(capacity);
        if self.cold {
            let cold = ColdConfig::directory(self.directory.join("cold"))
                .capacity(1 << 30)
                .pack_bytes(1 << 20);
            config = config.cold(cold);
        }
        Ok(config.build()?)
    }

    async fn work(&self, store: &Store, task: u32, left: Task) -> Result<(), Error> {
        let mut random = Random::new(&[self.seed, self.generation, u64::from(task)]);
        // What nobody knows the end of is done once more: then it is known.
        let mut again = left.unanswered.map(|(operation, _)| operation);
        loop {
            let operation = again.take().unwrap_or_else(|| choose(&mut random));
            say(&format!("begin {task} {} {operation}", now_ms()))?;
            let done = carry_out(store, task, operation)
                .await
                .map_err(|error| format!("task {task}: {operation}: {error}"))?;
            say(&format!(
                "end {task} {}",
                if done { "ok" } else { "refused" }
            ))?;
            if random.below(4) == 0 {
                let number = random.below(u64::from(BLOCKS)) as u32;
                let (cid, data) = block(task, number);
                if store.get(&cid).await?.is_some_and(|read| read != data) {
                    return Err(format!("task {task}: block {number} has other bytes").into());
                }
            }
        }
    }
}

fn choose(random: &mut Random) -> Operation {
    let block = random.below(u64::from(BLOCKS)) as u32;
    let set = random.below(u64::from(SETS)) as u32;
    let value = random.below(u64::from(VALUES)) as u32;
    let ttl = match random.below(4) {
        0 => 3_600_000,
        1 => 300,
        _ => 300 + random.below(3000),
    };
    match random.below(100) {
        0..25 => Operation::Put(block),
        25..33 => Operation::PutMany(block.min(BLOCKS - 8), 8),
        33..45 => Operation::PutTtl(block, ttl),
        45..53 => Operation::PutPinned(block, set),
        53..71 => Operation::Delete(block),
        71..77 => Operation::Pin(block, set),
        77..82 => Operation::Unpin(block, set),
        82..84 => Operation::Rename(set, (set + 1) % SETS),
        84..86 => Operation::Drop(set),
        86..93 => {
            let ttl = if random.below(3) == 0 { ttl } else { 0 };
            Operation::PutValue(value, random.next(), ttl)
        }
        93..96 => Operation::DeleteValue(value),
        96..99 => Operation::Flush,
        _ => Operation::Gc,
    }
}

/// False: the store refused, as it should or not.
async fn carry_out(store: &Store, task: u32, operation: Operation) -> Result<bool, Error> {
    let put = async |number, options| {
        let (cid, data) = block(task, number);
        store.put_with(cid, data, options).await?;
        Ok::<bool, Error>(true)
    };
    let pins = |result: Result<(), PinError>| match result {
        Ok(()) => Ok(true),
        Err(PinError::Missing { .. } | PinError::NoSuchSet { .. } | PinError::SetExists { .. }) => {
            Ok(false)
        }
        Err(error) => Err(Error::from(error)),
    };
    let cid = |number| block(task, number).0;
    let set_of = |set| set_name(task, set);
    match operation {
        Operation::Put(number) => put(number, PutOptions::default()).await,
        Operation::PutMany(first, count) => {
            let blocks = (first..first + count).map(|n| block(task, n)).collect();
            store.put_many(blocks, PutOptions::default()).await?;
            Ok(true)
        }
        Operation::PutTtl(number, ttl) => {
            let ttl = Duration::from_millis(ttl);
            put(number, PutOptions::default().with_ttl(ttl)).await
        }
        Operation::PutPinned(number, set) => put(number, PutOptions::pinned(set_of(set))).await,
        Operation::Delete(number) => match store.delete(&cid(number)).await {
            Ok(_) => Ok(true),
            Err(DeleteError::Pinned { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        },
        Operation::Pin(number, set) => pins(store.pin(&set_of(set), &[cid(number)]).await),
        Operation::Unpin(number, set) => pins(store.unpin(&set_of(set), &[cid(number)]).await),
        Operation::Rename(from, to) => pins(store.rename_pin_set(&set_of(from), &set_of(to)).await),
        Operation::Drop(set) => pins(store.drop_pin_set(&set_of(set)).await),
        Operation::PutValue(value, version, ttl) => {
            let ttl = (ttl > 0).then(|| Duration::from_millis(ttl));
            let data = value_of(task, value, version);
            store.put_value(&value_key(task, value), data, ttl).await?;
            Ok(true)
        }
        Operation::DeleteValue(value) => {
            store.delete_value(&value_key(task, value)).await?;
            Ok(true)
        }
        Operation::Gc => {
            store.gc().await?;
            Ok(true)
        }
        Operation::Flush => {
            store.flush().await?;
            Ok(true)
        }
    }
}

/// Compares what a task has with the model: as before its unanswered operation, or as after it.
async fn check(store: &Store, number: u32, task: &Task) -> Result<(), Error> {
    let Some((operation, began)) = task.unanswered else {
        return matches(store, number, &task.state, &BTreeSet::new()).await;
    };
    // Not one thing: each block may be there or not.
    let loose: BTreeSet<u32> = match operation {
        Operation::PutMany(first, count) => (first..first + count).collect(),
        _ => BTreeSet::new(),
    };
    let Err(before) = matches(store, number, &task.state, &loose).await else {
        return Ok(());
    };
    let mut state = task.state.clone();
    state.apply(operation, began, now_ms());
    matches(store, number, &state, &loose)
        .await
        .map_err(|after| {
            format!("neither as before {operation} ({before}) nor as after it ({after})").into()
        })
}

async fn matches(
    store: &Store,
    task: u32,
    state: &State,
    loose: &BTreeSet<u32>,
) -> Result<(), Error> {
    for number in 0..BLOCKS {
        let (cid, data) = block(task, number);
        let (first, read, last) = (now_ms(), store.get(&cid).await?, now_ms());
        if read.as_ref().is_some_and(|read| *read != data) {
            return Err(format!("block {number} has other bytes").into());
        }
        let expected = match (state.is_there(number, first), state.is_there(number, last)) {
            (one, other) if one == other && !loose.contains(&number) => one,
            _ => None,
        };
        match (expected, read) {
            (Some(true), None) => {
                return Err(format!(
                    "block {number} is lost (its time: {:?}, now {first}, pinned: {}, has: {})",
                    state.blocks.get(&number),
                    state.is_pinned(number),
                    store.has(&cid)
                )
                .into());
            }
            (Some(false), Some(_)) => return Err(format!("block {number} is back").into()),
            _ => {}
        }
        if expected == Some(true)
            && !store.has(&cid)
            && state.is_there(number, now_ms()) == Some(true)
        {
            return Err(format!("block {number} is there and not").into());
        }
        if store.is_pinned(&cid) != state.is_pinned(number) {
            return Err(format!(
                "block {number} is {}pinned",
                if state.is_pinned(number) { "not " } else { "" }
            )
            .into());
        }
    }
    for set in 0..SETS {
        let pinned: BTreeSet<_> = store.pins(&set_name(task, set)).into_iter().collect();
        let members = state.sets.get(&set).cloned().unwrap_or_default();
        let expected: BTreeSet<_> = members.iter().map(|n| block(task, *n).0).collect();
        if pinned != expected {
            return Err(format!(
                "set {set} has {} members, not {}",
                pinned.len(),
                expected.len()
            )
            .into());
        }
    }
    for value in 0..VALUES {
        let key = value_key(task, value);
        let (first, read, last) = (now_ms(), store.get_value(&key).await?, now_ms());
        let (one, other) = (state.version(value, first), state.version(value, last));
        if let Some(version) = one.filter(|_| one == other)
            && read != version.map(|version| value_of(task, value, version))
        {
            return Err(format!(
                "value {value} is {}",
                match (&read, version) {
                    (None, _) => "lost",
                    (_, None) => "back",
                    _ => "another version",
                }
            )
            .into());
        }
    }
    Ok(())
}
