//! `skerry`: one binary, one subcommand per role.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skerry_server::{local::ThisMachine, run};

/// Self-hosted micro-VM workspaces.
#[derive(Debug, Parser)]
#[command(name = "skerry", version, about, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    options: skerry_cli::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: the APIs, the control plane and the VMs of this machine
    Serve(Box<run::ServeArguments>),
    #[command(flatten)]
    Client(skerry_cli::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("skerry: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Serve(serve) => match run::serve(*serve).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("skerry: {error:#}");
                    ExitCode::FAILURE
                }
            },
            Command::Client(command) => {
                let environment = skerry_cli::Environment::of_this_process();
                skerry_cli::run(&arguments.options, &environment, command, &ThisMachine).await
            }
        }
    });
    // A blocking read of a terminal cannot be cancelled: it must not hold the exit.
    runtime.shutdown_background();
    code
}
