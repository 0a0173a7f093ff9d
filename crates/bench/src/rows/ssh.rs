//! A command by SSH, and the same by the API.

use anyhow::Result;

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    goal::{Goal, Row, Unit},
    platform::{Mode, SshSession},
    samples::{Clock, Rounds, in_turns},
};

pub(super) async fn measure(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let server = bench.server(Mode::Restore).await?;
    let (api, gateway) = (server.api.clone(), server.ssh);
    api.ensure_template(MEMORY_MIB).await?;
    let id = api.create(MEMORY_MIB).await?.id;
    let session = SshSession::open(gateway, &api, &id).await?;
    let by_api = async || {
        let clock = Clock::start();
        api.exec_by_shell(&id).await?;
        Ok(clock.ms())
    };
    let by_ssh = async || {
        let clock = Clock::start();
        session.exec().await?;
        Ok(clock.ms())
    };
    let rounds = Rounds { warm_up: 10.min(samples), counted: samples };
    let samples = in_turns("ssh", rounds, by_api, by_ssh).await;
    session.close().await?;
    api.delete(&id).await?;
    let path = "platform: a session channel on an SSH connection that is kept, exec, its output and its \
                exit status; floor: POST exec of the same by the login's shell, as SSH runs commands";
    let goals = [Goal::AboveFloorAtMost(1.0)];
    Ok(vec![samples.into_row("SSH exec against the API's", path, Unit::Milliseconds, &goals)])
}
