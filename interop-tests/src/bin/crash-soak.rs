//! SIGKILL under load, a thousand times: what the store acknowledged must be there. See `interop-tests/README.md`.

use anypath_interop_tests::soak::{Error, load::Load, parent::Soak};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Kills a process that fills a block store, reopens the store, and compares it with what was acknowledged.
#[derive(Debug, Parser)]
#[command(name = "crash-soak", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    soak: Soak,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The process that is killed
    #[command(hide = true)]
    Child(Load),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result: Result<(), Error> = match arguments.command {
        Some(Command::Child(load)) => child(load),
        None => arguments.soak.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash-soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn child(load: Load) -> Result<(), Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()?
        .block_on(load.run())
}
