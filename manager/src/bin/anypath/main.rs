//! The `anypath` command.

mod add;
mod args;
mod client;
mod context;
mod get;
mod output;
mod query;
mod start;
mod topics;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;

use self::{
    args::{Arguments, Command},
    context::Context,
    output::Output,
};

/// Any error: the text is for the user and says what to do next.
type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return output::fail_arguments(&error),
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing_subscriber::filter::LevelFilter::ERROR.into())
                .from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let output = Output::new(arguments.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&error.into()),
    };
    let ended = runtime.block_on(run(arguments, output));
    // Threads that still read names or files must not hold the exit up.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    }
}

async fn run(arguments: Arguments, output: Output) -> Result<(), Error> {
    let context = Context::new(&arguments, output)?;
    match arguments.command {
        Command::Start(flags) => start::run(&context, &flags).await,
        Command::Relay(flags) => start::run(&context, &flags.relaying()).await,
        Command::Id => query::id(&context),
        Command::SwarmKey => {
            query::swarm_key(&context);
            Ok(())
        }
        Command::Add(flags) => add::run(&context, &flags).await,
        Command::Get(flags) => get::run(&context, &flags).await,
        Command::Peers => query::peers(&context).await,
        Command::Connect { address } => query::connect(&context, &address).await,
        Command::Publish { topic, message } => topics::publish(&context, &topic, message).await,
        Command::Subscribe { topic, count } => topics::subscribe(&context, &topic, count).await,
        Command::Status => query::status(&context).await,
        Command::Shutdown => query::shutdown(&context).await,
    }
}
