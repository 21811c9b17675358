//! Figures beside their peers, measured in the same run. See `interop-tests/README.md`.

use anypath_interop_tests::compare::area::{Area, NotBuilt};
use anypath_interop_tests::compare::{Effort, Error, bitswap, punch, relay, store};
use anypath_interop_tests::lab;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Compares Anypath with its peers on this machine, in the same run.
#[derive(Debug, Parser)]
#[command(name = "compare", subcommand_negates_reqs = true)]
struct Arguments {
    /// One JSON object a line for each figure
    #[arg(long, global = true)]
    json: bool,
    /// Fewer runs and less data; every figure is there
    #[arg(long, global = true)]
    quick: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Without one: every area that is built
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Area(Area),
    /// One process of a measurement
    #[command(subcommand, hide = true)]
    Endpoint(Endpoint),
}

#[derive(Debug, Subcommand)]
enum Endpoint {
    Bitswap(bitswap::Task),
    #[command(subcommand)]
    Punch(punch::Task),
    /// Ours and the raw stream by turns over the lab's links
    Far(bitswap::Far),
    Relay(relay::Task),
    #[command(subcommand)]
    Store(store::Task),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before there are threads: this process starts again inside the lab.
    if let Some(Command::Endpoint(Endpoint::Far(_))) = arguments.command
        && let Err(error) = lab::enter()
    {
        eprintln!("compare: {}", lab::explain(&error));
        return ExitCode::FAILURE;
    }
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .init();
    }
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            // clap's own code for a wrong command line.
            if error.is::<NotBuilt>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    let areas = match arguments.command {
        Some(Command::Endpoint(Endpoint::Bitswap(task))) => return task.run().await,
        Some(Command::Endpoint(Endpoint::Punch(task))) => return task.run().await,
        Some(Command::Endpoint(Endpoint::Far(task))) => return task.run().await,
        Some(Command::Endpoint(Endpoint::Relay(task))) => return task.run().await,
        Some(Command::Endpoint(Endpoint::Store(task))) => return task.run(),
        Some(Command::Area(area)) => vec![area],
        None => Area::all(),
    };
    for area in &areas {
        area.built()?;
    }
    let effort = if arguments.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    if !arguments.json {
        println!(
            "{:<44} {:>10} {:>10} {:>7}",
            "figure", "ours", "peer", "ratio"
        );
    }
    for area in areas {
        area.measure(effort, &mut |figure| {
            if arguments.json {
                match serde_json::to_string(&figure) {
                    Ok(line) => println!("{line}"),
                    Err(error) => eprintln!("compare: {}: {error}", figure.figure),
                }
            } else {
                println!("{figure}");
            }
        })
        .await?;
    }
    Ok(())
}
