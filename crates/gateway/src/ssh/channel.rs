//! A session channel between its opening and the command it is for.

use std::collections::BTreeMap;

use russh::{ChannelWriteHalf, Sig, server::Msg};
use skerry_internal_api::Pty;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::intake::{Inlet, Input};

/// Variables of one channel, and their bytes in all.
const VARIABLES: usize = 64;
const VARIABLE_BYTES: usize = 32 * 1024;
/// Signals that wait for a command that takes none.
const SIGNALS_WAITING: usize = 8;
/// The size of a terminal whose client does not know its own.
const TERMINAL: Pty = Pty { columns: 80, rows: 24 };
/// The largest a guest takes.
const CELLS_MAX: u32 = 1000;

/// A channel as the connection knows it.
pub(super) struct OpenChannel {
    /// Where its bytes go in; `None` after their end.
    pub(super) inlet: Option<Inlet>,
    pub(super) size: watch::Sender<Pty>,
    pub(super) signals: mpsc::Sender<i32>,
    /// Ends what runs for it; cancelled also when that has ended by itself.
    pub(super) closed: CancellationToken,
    /// What is needed to start something on it, until something was.
    pub(super) fresh: Option<Fresh>,
}

/// What a channel is given before something runs on it.
pub(super) struct Fresh {
    pub(super) output: ChannelWriteHalf<Msg>,
    pub(super) input: Input,
    pub(super) env: BTreeMap<String, String>,
    pub(super) has_terminal: bool,
    pub(super) sizes: watch::Receiver<Pty>,
    pub(super) signals: mpsc::Receiver<i32>,
    pub(super) closed: CancellationToken,
}

impl OpenChannel {
    pub(super) fn new(
        (inlet, input): (Inlet, Input),
        output: ChannelWriteHalf<Msg>,
        closed: CancellationToken,
    ) -> Self {
        let (size, sizes) = watch::channel(TERMINAL);
        let (signals, signals_out) = mpsc::channel(SIGNALS_WAITING);
        let fresh = Fresh {
            output,
            input,
            env: BTreeMap::new(),
            has_terminal: false,
            sizes,
            signals: signals_out,
            closed: closed.clone(),
        };
        Self { inlet: Some(inlet), size, signals, closed, fresh: Some(fresh) }
    }

    /// One that the gateway has opened: nothing is started on it.
    pub(super) fn ours(inlet: Inlet, closed: CancellationToken) -> Self {
        let (size, _) = watch::channel(TERMINAL);
        let (signals, _) = mpsc::channel(SIGNALS_WAITING);
        Self { inlet: Some(inlet), size, signals, closed, fresh: None }
    }

    /// The client wants a terminal. False when it is too late for that.
    pub(super) fn want_terminal(&mut self, term: &str, columns: u32, rows: u32) -> bool {
        self.size.send_replace(pty(columns, rows));
        let Some(fresh) = &mut self.fresh else { return false };
        fresh.has_terminal = true;
        // A client without one says nothing.
        if !term.is_empty() && is_value(term) {
            fresh.env.insert("TERM".to_owned(), term.to_owned());
        }
        true
    }

    pub(super) fn resize(&self, columns: u32, rows: u32) {
        self.size.send_replace(pty(columns, rows));
    }

    /// The client wants a variable set. False when it is none or there are too many.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        let Some(fresh) = &mut self.fresh else { return false };
        let there: usize = fresh.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if !is_name(name)
            || !is_value(value)
            || fresh.env.len() >= VARIABLES
            || there + name.len() + value.len() > VARIABLE_BYTES
        {
            return false;
        }
        fresh.env.insert(name.to_owned(), value.to_owned());
        true
    }

    pub(super) fn signal(&self, signal: &Sig) {
        // A command that has not taken so many will not miss one more.
        let _ = number(signal).map(|number| self.signals.try_send(number));
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_value(text: &str) -> bool {
    !text.contains('\0')
}

/// Clients without a terminal of their own say 0 by 0 (RFC 4254, section 6.2).
fn pty(columns: u32, rows: u32) -> Pty {
    let cells = |asked: u32, otherwise: u16| match asked {
        0 => otherwise,
        asked => u16::try_from(asked.min(CELLS_MAX)).unwrap_or(otherwise),
    };
    Pty { columns: cells(columns, TERMINAL.columns), rows: cells(rows, TERMINAL.rows) }
}

/// Linux's number of a signal that SSH names (RFC 4254, section 6.10).
fn number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(name) => match name.as_str() {
            "USR2" => 12,
            "CHLD" => 17,
            "CONT" => 18,
            "STOP" => 19,
            "TSTP" => 20,
            "WINCH" => 28,
            _ => return None,
        },
    })
}

/// SSH's name of a signal by Linux's number.
pub(super) fn name(number: i32) -> Sig {
    match number {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        other => Sig::Custom(format!("SIG{other}@skerry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_ssh_names_goes_in_and_comes_out_as_the_same() {
        for signal in 1..=15 {
            if let Some(again) = number(&name(signal)) {
                assert_eq!(again, signal);
            }
        }
        assert_eq!(number(&Sig::Custom("USR2".into())), Some(12));
        assert_eq!(number(&Sig::Custom("NONSENSE".into())), None);
    }

    #[test]
    fn a_terminal_has_a_size_that_a_guest_takes() {
        assert_eq!(pty(0, 0), TERMINAL);
        assert_eq!(pty(132, 43), Pty { columns: 132, rows: 43 });
        assert_eq!(pty(u32::MAX, 70_000), Pty { columns: 1000, rows: 1000 });
    }
}
