//! Making the guest a particular workspace's: name, identity, clock, entropy, environment.

use std::sync::Arc;

use skerry_agent_protocol::{
    REVISION,
    limits::{ENTROPY_MAX, ENTROPY_MIN},
    message::{Clock, Configure, Configured},
};

use crate::{
    AgentError, Guest, host_keys,
    init::{disk::RootDisk, identity, log},
    session::Session,
};

/// Who the machine is, as far as it is written into its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    hostname: String,
    /// Empty while the machine is nobody.
    machine_id: String,
}

impl Identity {
    /// Whether the machine belongs to a workspace, and not to whatever is cloned from it.
    pub(crate) fn is_somebodys(&self) -> bool {
        !self.machine_id.is_empty()
    }
}

/// Applies `request`; doing so again changes nothing but the random state, and a clock that is off.
pub(crate) async fn configure(
    session: &Session,
    request: &Configure,
) -> Result<Configured, AgentError> {
    check(request)?;
    let guest = &session.guest;
    let wanted =
        Identity { hostname: request.hostname.clone(), machine_id: request.machine_id.clone() };
    let mut clock_kept = false;
    if guest.as_machine().is_some() {
        // Randomness first: whatever is made after this is this guest's alone.
        identity::reseed(&request.entropy)?;
        let is_reconnection = guest.identity().lock().await.as_ref() == Some(&wanted);
        clock_kept = is_reconnection && identity::clock_goes_on(request.unix_time_ns);
        if !clock_kept {
            identity::set_clock(request.unix_time_ns)?;
        }
    }
    // A guest may have been saved while frozen. Nothing can be written before this.
    guest.freezer().thaw().await?;
    assume(guest, wanted).await?;
    guest.set_env(request.env.clone());
    Ok(Configured {
        agent_version: String::from(env!("CARGO_PKG_VERSION")),
        boot_id: identity::boot_id(),
        generation: session.generation,
        revision: REVISION,
        incarnation: request.incarnation,
        clock_kept,
    })
}

/// Makes the machine this one, in as few steps as it takes: none on a mere reconnection.
async fn assume(guest: &Arc<Guest>, wanted: Identity) -> Result<(), AgentError> {
    let mut current = guest.identity().lock().await;
    if let Some(machine) = guest.as_machine() {
        let grown = machine.root_disk.as_ref().filter(|disk| disk.has_grown());
        if let Some(disk) = grown.cloned() {
            guest
                .blocking(move || {
                    fill(&disk);
                    Ok(())
                })
                .await?;
        }
        if current.as_ref() != Some(&wanted) {
            let (before, after) = (current.take(), wanted.clone());
            if before.as_ref().is_some_and(|before| before.machine_id != after.machine_id) {
                guest.key_maker().stop().await;
            }
            guest.blocking(move || change(before.as_ref(), &after)).await?;
            if wanted.is_somebodys() {
                guest.key_maker().make_missing(guest).await;
            }
        }
    }
    *current = Some(wanted);
    Ok(())
}

fn fill(disk: &RootDisk) {
    // Smaller than asked for is better than no workspace.
    if let Err(error) = disk.grow("/") {
        log(&format!("root file system not grown: {error}"));
    }
}

fn change(before: Option<&Identity>, after: &Identity) -> Result<(), AgentError> {
    if before.is_none_or(|before| before.hostname != after.hostname) {
        identity::set_hostname(&after.hostname)?;
    }
    if before.is_some_and(|before| before.machine_id != after.machine_id) {
        identity::renew_boot_id()?;
    }
    if before.is_none_or(|before| before.machine_id != after.machine_id)
        && identity::machine_id()? != after.machine_id
    {
        // Before the id they belong to: should this break off in between, they are still gone.
        host_keys::remove()?;
        identity::set_machine_id(&after.machine_id)?;
    }
    Ok(())
}

/// Sets the wall clock.
pub(crate) fn set_clock(guest: &Guest, clock: Clock) -> Result<(), AgentError> {
    match guest.as_machine() {
        Some(_) => identity::set_clock(clock.unix_time_ns),
        None => Ok(()),
    }
}

fn check(request: &Configure) -> Result<(), AgentError> {
    let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let hostname = request.hostname.as_bytes();
    if hostname.is_empty() || hostname.len() > 63 || !hostname.iter().copied().all(label) {
        return Err(AgentError::invalid("hostname: 1 to 63 of a-z, 0-9, - and ."));
    }
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !matches!(request.machine_id.len(), 0 | 32) || !request.machine_id.bytes().all(digit) {
        return Err(AgentError::invalid("machine_id: 32 lower-case hexadecimal digits, or none"));
    }
    if !(ENTROPY_MIN..=ENTROPY_MAX).contains(&request.entropy.len()) {
        return Err(AgentError::invalid(format!("entropy: {ENTROPY_MIN} to {ENTROPY_MAX} bytes")));
    }
    check_env(request.env.iter())
}

/// An environment that `execve` can take.
pub(crate) fn check_env<'a>(
    mut env: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<(), AgentError> {
    let bad = env
        .find(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'));
    match bad {
        Some((key, _)) => Err(AgentError::invalid(format!("env: {key:?} is not possible"))),
        None => Ok(()),
    }
}
