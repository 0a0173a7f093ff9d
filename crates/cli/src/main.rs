//! `skerry-client`: the client alone, for machines that run no server. The installed `skerry` binary
//! has the same commands.

use std::process::ExitCode;

use async_trait::async_trait;
use clap::Parser;
use skerry_cli::{Command, Environment, ImageBuildArgs, KernelBuildArgs, LocalCommands, Options};

/// Client of a Skerry server: micro-VM workspaces.
#[derive(Parser)]
#[command(name = "skerry-client", version, about, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    command: Command,
}

/// Nothing here can build images or run VMs.
struct NoServerHere;

#[async_trait]
impl LocalCommands for NoServerHere {
    async fn build_images(&self, _: &ImageBuildArgs, _json: bool) -> ExitCode {
        eprintln!("skerry: this is the client alone; build images with the skerry binary");
        ExitCode::FAILURE
    }

    async fn build_kernel(&self, _: &KernelBuildArgs, _json: bool) -> ExitCode {
        eprintln!("skerry: this is the client alone; build a kernel with the skerry binary");
        ExitCode::FAILURE
    }

    async fn doctor(&self, _json: bool) -> ExitCode {
        eprintln!("skerry: no server answers, and this is the client alone");
        ExitCode::from(5)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let environment = Environment::of_this_process();
    skerry_cli::run(&arguments.options, &environment, arguments.command, &NoServerHere).await
}
