//! The command-line client: everything a tenant does with workspaces, over the native HTTP API.
//!
//! It speaks HTTP only and depends on nothing else of ours: it refuses to know the store, the node and
//! hypervisors. What needs the machine itself (building images, looking at the host when no server
//! answers) is handed in as [`LocalCommands`] by the binary.
//!
//! Exit codes, the order in which address and key are looked up, and the meaning of every command are
//! described in `docs/cli.md`.

pub mod args;
mod client;
mod commands;
mod error;
mod exec_stream;
mod input;
mod login;
mod output;
mod progress;
mod terminal;
mod tree;
mod wire;

use std::process::ExitCode;

use async_trait::async_trait;

pub use args::{Command, ImageBuildArgs, KernelBuildArgs, Options};
pub use login::Environment;

use crate::{client::Client, error::Error, output::Output};

/// What the client cannot do by itself, because it needs the machine and not the server.
#[async_trait]
pub trait LocalCommands: Send + Sync {
    /// `skerry image build`.
    async fn build_images(&self, arguments: &ImageBuildArgs, json: bool) -> ExitCode;

    /// `skerry kernel build`.
    async fn build_kernel(&self, arguments: &KernelBuildArgs, json: bool) -> ExitCode;

    /// `skerry doctor --local`, and `skerry doctor` when no server answers.
    async fn doctor(&self, json: bool) -> ExitCode;
}

/// Carries out one command and says how it ended. Everything that goes wrong is printed here; the
/// caller only has to exit with the code.
pub async fn run(
    options: &Options,
    environment: &Environment,
    command: Command,
    local: &dyn LocalCommands,
) -> ExitCode {
    let output = Output::new(options.json);
    let own_codes = matches!(command, Command::Exec(_) | Command::Shell(_));
    match carry_out(options, environment, command, local, output).await {
        Ok(code) => code,
        Err(Error::OutputClosed) if !own_codes => ExitCode::SUCCESS,
        Err(error) => {
            // A closed output is the reader's wish and no news to them.
            if !matches!(error, Error::OutputClosed) {
                output.error(&error);
            }
            // Where the command's own codes come through, ours must not look like them.
            ExitCode::from(if own_codes { error.exec_exit_code() } else { error.exit_code() })
        }
    }
}

async fn carry_out(
    options: &Options,
    environment: &Environment,
    command: Command,
    local: &dyn LocalCommands,
    output: Output,
) -> Result<ExitCode, Error> {
    let client = || Client::new(login::connection(options, environment)?);
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Create(args) => commands::workspaces::create(&client()?, *args, output).await,
        Command::Ls(args) => commands::workspaces::list(&client()?, args, output).await.map(done),
        Command::Get(args) => {
            commands::workspaces::get(&client()?, &args.workspace, output).await.map(done)
        }
        Command::Start(args) => {
            commands::workspaces::power(&client()?, "start", args, output).await
        }
        Command::Stop(args) => commands::workspaces::power(&client()?, "stop", args, output).await,
        Command::Restart(args) => {
            commands::workspaces::power(&client()?, "restart", args, output).await
        }
        Command::Pause(args) => {
            commands::workspaces::power(&client()?, "pause", args, output).await
        }
        Command::Suspend(args) => {
            commands::workspaces::power(&client()?, "suspend", args, output).await
        }
        Command::Resume(args) => {
            commands::workspaces::power(&client()?, "resume", args, output).await
        }
        Command::Snapshot { command } => {
            commands::snapshots::snapshot(&client()?, command, output).await
        }
        Command::Volume { command } => commands::volumes::volume(&client()?, command, output).await,
        Command::Workload { command } => {
            commands::workloads::workload(&client()?, command, output).await.map(done)
        }
        Command::Restore(args) => commands::snapshots::restore(&client()?, args, output).await,
        Command::Fork(args) => commands::snapshots::fork(&client()?, args, output).await,
        Command::Lifecycle(args) => {
            commands::lifecycle::change(&client()?, &args, output).await.map(done)
        }
        Command::Renew(args) => {
            commands::lifecycle::renew(&client()?, args, output).await.map(done)
        }
        Command::Rm(args) => commands::workspaces::remove(&client()?, args, output).await.map(done),
        Command::Exec(args) => commands::exec::exec(&client()?, args, output).await,
        Command::Shell(args) => commands::exec::shell(&client()?, args).await,
        Command::Cp(args) => commands::copy::copy(&client()?, args, output).await,
        Command::Logs(args) => commands::inspect::logs(&client()?, args, output).await.map(done),
        Command::Stats(args) => {
            commands::inspect::stats(&client()?, &args.workspace, output).await.map(done)
        }
        Command::Ports(args) => {
            commands::inspect::ports(&client()?, &args.workspace, output).await.map(done)
        }
        Command::Port { command } => {
            commands::ports::port(&client()?, command, output).await.map(done)
        }
        Command::Domain { command } => {
            commands::domains::domain(&client()?, command, output).await.map(done)
        }
        Command::Net { command } => commands::net::net(&client()?, command, output).await.map(done),
        Command::Key { command } => {
            commands::account::key(&client()?, command, output).await.map(done)
        }
        Command::Ssh(args) => commands::ssh::ssh(&client()?, args).await.map(done),
        Command::SshConfig => commands::ssh::config(&client()?).await.map(done),
        Command::SshAccess { command } => {
            commands::ssh::access(&client()?, command, output).await.map(done)
        }
        Command::SshKey { command } => {
            commands::ssh::key(&client()?, command, output).await.map(done)
        }
        Command::Image { command } => match command {
            args::ImageCommand::Ls => commands::account::images(&client()?, output).await.map(done),
            args::ImageCommand::Pull { reference } => {
                commands::images::pull(&client()?, &reference, output).await.map(done)
            }
            args::ImageCommand::Build(arguments) => {
                Ok(local.build_images(&arguments, options.json).await)
            }
        },
        Command::Kernel { command: args::KernelCommand::Build(arguments) } => {
            Ok(local.build_kernel(&arguments, options.json).await)
        }
        Command::Quota => commands::account::quota(&client()?, output).await.map(done),
        Command::Doctor(args) => {
            if args.local {
                return Ok(local.doctor(options.json).await);
            }
            match commands::account::doctor(&client()?, output).await {
                Err(Error::Unreachable { .. }) => Ok(local.doctor(options.json).await),
                result => result,
            }
        }
        Command::Login(args) => {
            commands::login::login(options, environment, args, output).await.map(done)
        }
        Command::Logout => commands::login::logout(environment, output).map(done),
    }
}
