//! One connection: who it is, and what its channels are for.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodKind, MethodSet, Pty as PtyMode, Sig,
    keys::{Algorithm, HashAlg, PublicKey},
    server::{
        Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
    },
};
use skerry_internal_api::{KeyFingerprint, RouteCredential, RouteError, User};
use skerry_model::{Secret, WorkspaceId};
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    channel::OpenChannel,
    command::{self, What},
    forward,
    guard::Visit,
    intake::Intake,
    remote::Remotes,
    sftp,
};

/// The user who may connect to workspaces and do nothing else.
const JUMP_USER: &str = "root";
/// Channels open at the same time on one connection.
const CHANNELS: usize = 64;
/// The same while nobody has logged in.
const CHANNELS_OF_A_STRANGER: usize = 4;
/// A name or a login longer than this is none.
const NAME_BYTES: usize = 255;

/// Where somebody stands.
#[derive(Clone, Debug)]
pub(super) enum Door {
    /// The gateway's own: the user's name is the workspace's.
    Outer,
    /// The one of a workspace of this name, behind the jump host: the user's name is one of the guest.
    Workspace(String),
}

impl Door {
    /// How one logs in there. Whether there is such a workspace, or it has a password, shows in nothing.
    pub(super) fn methods(&self) -> MethodSet {
        let methods: &[MethodKind] = match self {
            Self::Outer => &[MethodKind::PublicKey],
            Self::Workspace(_) => &[MethodKind::PublicKey, MethodKind::Password],
        };
        methods.into()
    }
}

/// Who somebody is.
#[derive(Clone, Debug)]
enum Who {
    Stranger,
    /// May go to workspaces' doors.
    Jumper,
    Guest(Entry),
}

/// The right to enter a workspace.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) credential: RouteCredential,
    pub(super) workspace: WorkspaceId,
    pub(super) user: User,
}

/// The handler of one connection.
pub(super) struct Connection {
    gateway: Arc<Gateway>,
    door: Door,
    visit: Arc<Visit>,
    peer: SocketAddr,
    who: Who,
    intake: Arc<Intake>,
    channels: HashMap<ChannelId, OpenChannel>,
    remotes: Remotes,
    ended: CancellationToken,
}

impl Connection {
    pub(super) fn new(
        gateway: &Arc<Gateway>,
        door: Door,
        visit: Arc<Visit>,
        peer: SocketAddr,
        ended: CancellationToken,
    ) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            door,
            visit,
            peer,
            who: Who::Stranger,
            intake: Arc::default(),
            channels: HashMap::new(),
            remotes: Remotes::new(ended.clone()),
            ended,
        }
    }

    /// Who `user` with this key is.
    async fn recognise(&self, user: &str, key: &PublicKey) -> Who {
        if user.is_empty() || user.len() > NAME_BYTES {
            return Who::Stranger;
        }
        let (name, user) = match &self.door {
            Door::Outer if user == JUMP_USER => return Who::Jumper,
            Door::Outer => (user, User::Root),
            Door::Workspace(name) => (name.as_str(), login(user)),
        };
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        let Ok(digest) = fingerprint.as_bytes().try_into() else { return Who::Stranger };
        let credential = RouteCredential::SshKey(KeyFingerprint(digest));
        match self.gateway.routes.find(&credential, name).await {
            Ok(workspace) => Who::Guest(Entry { credential, workspace, user }),
            Err(RouteError::NotFound | RouteError::Refused(_) | RouteError::Internal) => {
                Who::Stranger
            }
        }
    }

    /// Who `user` with this password is. Passwords are of workspaces: only their own doors take them.
    async fn recognise_password(&self, user: &str, password: &str) -> Who {
        let Door::Workspace(name) = &self.door else { return Who::Stranger };
        if user.is_empty() || user.len() > NAME_BYTES {
            return Who::Stranger;
        }
        match self.gateway.routes.log_in(name, user, &Secret::new(password)).await {
            Ok((credential, workspace)) => {
                Who::Guest(Entry { credential, workspace, user: login(user) })
            }
            Err(RouteError::NotFound | RouteError::Refused(_) | RouteError::Internal) => {
                Who::Stranger
            }
        }
    }

    /// Lets `who` in, or not.
    fn admit(&mut self, who: Who) -> Auth {
        self.who = who;
        match &self.who {
            Who::Guest(entry) => {
                tracing::info!(workspace.id = %entry.workspace, peer = %self.peer.ip(), "SSH login");
                self.visit.recognise();
                Auth::Accept
            }
            Who::Jumper => Auth::Accept,
            Who::Stranger => self.refuse(),
        }
    }

    /// russh would not take a second try of a kind that has failed.
    fn refuse(&self) -> Auth {
        self.visit.refuse();
        Auth::Reject { proceed_with_methods: Some(self.door.methods()), partial_success: false }
    }

    /// The channel's fresh half, if nothing runs on it yet, and who it is for.
    fn begin(&mut self, channel: ChannelId) -> Option<(Entry, super::channel::Fresh)> {
        let Who::Guest(entry) = &self.who else { return None };
        let fresh = self.channels.get_mut(&channel)?.fresh.take()?;
        Some((entry.clone(), fresh))
    }

    fn run(
        &mut self,
        channel: ChannelId,
        what: What,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some((entry, mut fresh)) = self.begin(channel) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        let peer = self.peer;
        let connection = format!("{} {} {} 22", peer.ip(), peer.port(), "127.0.0.1");
        fresh.env.entry("SSH_CONNECTION".to_owned()).or_insert(connection);
        let (gateway, handle) = (Arc::clone(&self.gateway), session.handle());
        self.gateway.tasks.spawn(command::run(gateway, entry, what, fresh, handle));
        Ok(())
    }

    fn is_crowded(&mut self) -> bool {
        // russh tells of a channel's end only when the client was first to end it.
        self.channels.retain(|_, open| !open.closed.is_cancelled());
        let most = match self.who {
            Who::Stranger | Who::Jumper => CHANNELS_OF_A_STRANGER,
            Who::Guest(_) => CHANNELS,
        };
        self.channels.len() >= most
    }
}

/// A login of the guest.
fn login(user: &str) -> User {
    if user == "root" { User::Root } else { User::Named(user.to_owned()) }
}

/// `ssh-rsa`, which signs SHA-1: RSA keys are good for `rsa-sha2-256` and `-512` (RFC 8332) alone.
pub(super) fn is_weak(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None })
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        if matches!(self.door, Door::Outer) && user == JUMP_USER {
            self.who = Who::Jumper;
            return Ok(Auth::Accept);
        }
        Ok(Auth::reject())
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        if is_weak(offer.algorithm) {
            return Ok(self.refuse());
        }
        match self.recognise(user, offer.public_key).await {
            Who::Jumper | Who::Guest(_) => Ok(Auth::Accept),
            Who::Stranger => Ok(self.refuse()),
        }
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let who = match is_weak(key.algorithm) {
            true => Who::Stranger,
            false => self.recognise(user, key.public_key).await,
        };
        Ok(self.admit(who))
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        let who = self.recognise_password(user, password).await;
        Ok(self.admit(who))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if !matches!(self.who, Who::Guest(_)) {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        } else if self.is_crowded() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            let id = channel.id();
            let (_, output) = channel.split();
            let open = OpenChannel::new(self.intake.queue(), output, self.ended.child_token());
            self.channels.insert(id, open);
            reply.accept().await;
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.is_crowded() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let Ok(port) = u16::try_from(port_to_connect) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        let to = forward::Target { host: host_to_connect.to_owned(), port };
        let id = channel.id();
        let (_, output) = channel.split();
        let mut open = OpenChannel::new(self.intake.queue(), output, self.ended.child_token());
        let Some(fresh) = open.fresh.take() else { return Ok(()) };
        let gateway = Arc::clone(&self.gateway);
        match &self.who {
            Who::Guest(entry) => {
                let splicing =
                    forward::splice(gateway, entry.clone(), to, fresh, reply, self.ended.clone());
                self.gateway.tasks.spawn(splicing);
            }
            Who::Jumper if to.port == 22 && to.host.len() <= NAME_BYTES => {
                let visit = Arc::clone(&self.visit);
                let jumping = forward::jump(gateway, to.host, visit, self.peer, fresh, reply);
                self.gateway.tasks.spawn(jumping);
            }
            Who::Jumper | Who::Stranger => {
                reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
                return Ok(());
            }
        }
        self.channels.insert(id, open);
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Who::Guest(entry) = &self.who else { return Ok(false) };
        let opened = self.remotes.open(&self.gateway, entry, address, *port, session.handle());
        let opened = opened.await;
        if let Some(is_on) = opened {
            *port = u32::from(is_on);
        }
        Ok(opened.is_some())
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.remotes.close(address, port))
    }

    /// The client has agreed to a channel of ours; what it says on it comes after this.
    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let (inlet, input) = self.intake.queue();
        let closed = self.ended.child_token();
        self.channels.insert(id, OpenChannel::ours(inlet, closed.clone()));
        self.remotes.confirmed.put(id, input, closed);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(inlet) = self.channels.get(&channel).and_then(|open| open.inlet.as_ref()) {
            inlet.put(data);
        }
        if self.intake.settle(data.len()).await.is_err() {
            session.disconnect(Disconnect::ProtocolError, "windows are to be kept", "")?;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.intake.window()
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(open) = self.channels.get_mut(&channel) {
            open.inlet = None;
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(open) = self.channels.remove(&channel) {
            open.closed.cancel();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        col_width: u32,
        row_height: u32,
        _: u32,
        _: u32,
        _: &[(PtyMode, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let open = self.channels.get_mut(&channel);
        if open.is_some_and(|open| open.want_terminal(term, col_width, row_height)) {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        variable_name: &str,
        variable_value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let open = self.channels.get_mut(&channel);
        if open.is_some_and(|open| open.set_variable(variable_name, variable_value)) {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.run(channel, What::Shell, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match std::str::from_utf8(data) {
            Ok(line) => self.run(channel, What::Command(line.to_owned()), session),
            Err(_) => session.channel_failure(channel),
        }
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name != "sftp" {
            return session.channel_failure(channel);
        }
        let Some((entry, fresh)) = self.begin(channel) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        self.gateway.tasks.spawn(sftp::run(Arc::clone(&self.gateway), entry, fresh));
        Ok(())
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        col_width: u32,
        row_height: u32,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(open) = self.channels.get(&channel) {
            open.resize(col_width, row_height);
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(open) = self.channels.get(&channel) {
            open.signal(&signal);
        }
        Ok(())
    }
}

/// Sends what ended a command by its signal.
pub(super) async fn tell_signal(handle: &Handle, channel: ChannelId, signal: Sig) {
    let told = handle.exit_signal_request(channel, signal, false, String::new(), String::new());
    // A client that is gone does not want to know.
    let _ = told.await;
}
