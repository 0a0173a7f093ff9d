//! A client of the SSH gateway.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use russh::{
    ChannelMsg, Disconnect, client,
    keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use ssh_key::private::Ed25519Keypair;

use super::Api;
use crate::{SAYS, ambient};

/// What is run, by the login's shell.
const LINE: &str = "echo ready";

/// A connection that is kept, to one workspace.
pub struct SshSession(client::Handle<Client>);

/// The server is ours, on loopback.
pub struct Client;

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

impl SshSession {
    /// Logs in to the workspace with a new key of the account.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn open(gateway: SocketAddr, api: &Api, workspace: &str) -> Result<Self> {
        let mut seed = [0; 32];
        for (to, from) in seed.iter_mut().zip(ambient::fresh().entropy) {
            *to = from;
        }
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        api.add_ssh_key(&key.public_key().to_openssh()?).await?;
        let config = client::Config { nodelay: true, ..client::Config::default() };
        let mut session = client::connect(Arc::new(config), gateway, Client).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let answer = session.authenticate_publickey(workspace, key).await?;
        ensure!(answer.success(), "the key is not accepted");
        Ok(Self(session))
    }

    /// Runs the command every sample ends with, and reads what it says.
    ///
    /// # Errors
    /// It did not run, or said something else.
    pub async fn exec(&self) -> Result<()> {
        let mut channel = self.0.channel_open_session().await?;
        channel.exec(true, LINE).await?;
        let (mut said, mut code) = (Vec::new(), None);
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => said.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        let said = String::from_utf8(said).context("its output")?;
        ensure!(code == Some(0) && said == SAYS, "{LINE} ended with {code:?} and said {said}");
        Ok(())
    }

    /// Hangs up.
    ///
    /// # Errors
    /// The connection was gone before.
    pub async fn close(self) -> Result<()> {
        Ok(self.0.disconnect(Disconnect::ByApplication, "done", "").await?)
    }
}
