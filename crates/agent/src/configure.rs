//! Making the guest a particular workspace's: name, identity, clock, entropy, environment.

use skerry_agent_protocol::{
    limits::{ENTROPY_MAX, ENTROPY_MIN},
    message::{Clock, Configure, Configured},
};

use crate::{AgentError, Guest, init::identity, session::Session};

/// Applies `request`; doing so again changes nothing but the clock and the random state.
pub(crate) async fn configure(
    session: &Session,
    request: &Configure,
) -> Result<Configured, AgentError> {
    check(request)?;
    let guest = &session.guest;
    if guest.is_machine() {
        let request = request.clone();
        guest
            .blocking(move || {
                // Randomness first: whatever is made after this is this guest's alone.
                identity::reseed(&request.entropy)?;
                identity::set_clock(request.unix_time_ns)?;
                identity::set_hostname(&request.hostname)?;
                identity::set_machine_id(&request.machine_id)
            })
            .await?;
    }
    guest.set_env(request.env.clone());
    Ok(Configured {
        agent_version: String::from(env!("CARGO_PKG_VERSION")),
        boot_id: guest.boot_id().to_owned(),
        generation: session.generation,
        incarnation: request.incarnation,
    })
}

/// Sets the wall clock.
pub(crate) fn set_clock(guest: &Guest, clock: Clock) -> Result<(), AgentError> {
    if guest.is_machine() { identity::set_clock(clock.unix_time_ns) } else { Ok(()) }
}

fn check(request: &Configure) -> Result<(), AgentError> {
    let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let hostname = request.hostname.as_bytes();
    if hostname.is_empty() || hostname.len() > 63 || !hostname.iter().copied().all(label) {
        return Err(AgentError::invalid("hostname: 1 to 63 of a-z, 0-9, - and ."));
    }
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if request.machine_id.len() != 32 || !request.machine_id.bytes().all(digit) {
        return Err(AgentError::invalid("machine_id: 32 lower-case hexadecimal digits"));
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
