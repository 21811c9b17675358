//! Shows what connects to what: `connectivity --automated` tries every way between real nodes on this machine, `connectivity` alone is
//! a node that is told what to do, and `connectivity listen` one that waits to be connected to.

mod automated;
mod host;
mod interactive;

use anypath_interop_tests::lab;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Where `listen` waits.
const PORT: u16 = 9200;

#[derive(Parser)]
#[command(
    about = "Tries the ways in which Anypath's nodes reach each other",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    /// Runs all checks, prints one line each and ends with 0 if none failed. With neither this nor a command: a node that takes commands.
    #[arg(long)]
    automated: bool,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Prints peer id and addresses and waits for others, on all interfaces, TCP and QUIC.
    Listen(Listen),
}

#[derive(Args)]
struct Listen {
    /// The port; 0: any.
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.automated {
        // The network in which all of it happens, where this machine allows one of its own. What is in it is built outside.
        let lab = lab::binary().and_then(|_| lab::enter());
        host::runtime().map(|runtime| automated::run(&runtime, lab))
    } else {
        host::runtime().and_then(|runtime| {
            let run = async {
                match arguments.task {
                    Some(Task::Listen(Listen { port })) => interactive::listen(port).await,
                    None => interactive::take_commands().await,
                }
            };
            runtime.block_on(run).map(|()| ExitCode::SUCCESS)
        })
    };
    ended.unwrap_or_else(|error| {
        eprintln!("connectivity: {error}");
        ExitCode::FAILURE
    })
}
