//! The user's terminal: its size, and raw mode that always ends.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::termios::{self, SetArg, Termios};

/// Whether a terminal program can run here: standard input and output are a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Columns and rows of the terminal; 80 by 24 when it does not say.
pub(crate) fn size() -> (u16, u16) {
    match crossterm::terminal::size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => (columns.min(1000), rows.min(1000)),
        Ok(_) | Err(_) => (80, 24),
    }
}

/// Raw mode: every key goes to the workspace, Ctrl-C too. Ends when this is dropped, which happens on
/// every way out: return, error, signal (they are caught) and panic (they unwind).
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// For standard input.
    pub(crate) fn enter() -> io::Result<Self> {
        Self::enter_on(io::stdin().as_fd().try_clone_to_owned()?)
    }

    fn enter_on(terminal: OwnedFd) -> io::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Asks for a secret without showing it.
pub(crate) fn ask_secret(question: &str) -> io::Result<String> {
    use std::io::Write;
    let mut stderr = io::stderr();
    write!(stderr, "{question}: ")?;
    stderr.flush()?;
    let terminal = io::stdin().as_fd().try_clone_to_owned()?;
    let before = termios::tcgetattr(&terminal)?;
    let mut silent = before.clone();
    silent.local_flags.remove(termios::LocalFlags::ECHO);
    silent.local_flags.insert(termios::LocalFlags::ECHONL);
    termios::tcsetattr(&terminal, SetArg::TCSADRAIN, &silent)?;
    let restored = RawMode { terminal, before };
    let mut line = String::new();
    let result = io::stdin().read_line(&mut line);
    drop(restored);
    result?;
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use nix::{pty::openpty, sys::termios::LocalFlags};

    use super::*;

    fn echoes(terminal: &OwnedFd) -> bool {
        termios::tcgetattr(terminal).expect("tcgetattr").local_flags.contains(LocalFlags::ECHO)
    }

    #[test]
    fn raw_mode_ends_when_it_is_let_go() {
        let pty = openpty(None, None).expect("openpty");
        let raw = RawMode::enter_on(pty.slave.try_clone().expect("clone")).expect("raw");
        assert!(!echoes(&pty.slave));
        drop(raw);
        assert!(echoes(&pty.slave));
    }

    #[test]
    fn raw_mode_ends_with_a_panic() {
        let pty = openpty(None, None).expect("openpty");
        let terminal = pty.slave.try_clone().expect("clone");
        let result = std::panic::catch_unwind(|| {
            let _raw = RawMode::enter_on(terminal).expect("raw");
            panic!("as it happens");
        });
        assert!(result.is_err());
        assert!(echoes(&pty.slave));
    }
}
