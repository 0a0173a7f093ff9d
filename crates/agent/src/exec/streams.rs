//! Our ends of a command's streams: three pipes, or one terminal.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::{
    libc,
    pty::Winsize,
    sys::signal::{Signal, killpg},
    unistd::{Pid, tcgetpgrp},
};
use skerry_agent_protocol::frame::Output;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    net::unix::pipe,
    sync::mpsc,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{PIECE, spawn::ParentEnds};

/// How long output is awaited after the command ended: something it left in the background may hold
/// the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(1);
/// What a terminal takes for the end of input.
const END_OF_TRANSMISSION: u8 = 0x04;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);
nix::ioctl_read_bad!(bytes_waiting, libc::FIONREAD, libc::c_int);

type Terminal = Arc<AsyncFd<std::fs::File>>;

/// All of them.
pub(super) struct Streams {
    input: InputEnd,
    outputs: Vec<OutputEnd>,
}

/// Where the command's input goes.
pub(super) enum InputEnd {
    /// Nothing was written yet: most commands are never sent anything.
    Unused(OwnedFd),
    Pipe(pipe::Sender),
    Terminal(Terminal),
    /// The command or the host closed it.
    Closed,
}

/// Where output comes from.
pub(super) struct OutputEnd {
    source: Source,
    wrap: fn(Bytes) -> Output,
}

enum Source {
    Pipe(pipe::Receiver),
    Terminal(Terminal),
}

impl Streams {
    pub(super) fn new(ends: ParentEnds) -> io::Result<Self> {
        Ok(match ends {
            ParentEnds::Pipes { stdin, stdout, stderr } => Self {
                input: InputEnd::Unused(stdin),
                outputs: vec![
                    OutputEnd { source: Source::Pipe(receiver(stdout)?), wrap: Output::Stdout },
                    OutputEnd { source: Source::Pipe(receiver(stderr)?), wrap: Output::Stderr },
                ],
            },
            ParentEnds::Terminal { master } => {
                let terminal = open_terminal(master)?;
                Self {
                    input: InputEnd::Terminal(Arc::clone(&terminal)),
                    outputs: vec![OutputEnd {
                        source: Source::Terminal(terminal),
                        wrap: Output::Stdout,
                    }],
                }
            }
        })
    }

    pub(super) fn split(self) -> (InputEnd, Vec<OutputEnd>) {
        (self.input, self.outputs)
    }
}

/// Of what we have just opened the only flag that can be changed and is set is the one we set.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

pub(super) fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    set_nonblocking(&fd)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

fn sender(fd: OwnedFd) -> io::Result<pipe::Sender> {
    set_nonblocking(&fd)?;
    pipe::Sender::from_owned_fd_unchecked(fd)
}

fn open_terminal(master: OwnedFd) -> io::Result<Terminal> {
    set_nonblocking(&master)?;
    // SAFETY: a `File` gives the same open descriptor for as long as it lives.
    let terminal = unsafe { AsyncFd::register(std::fs::File::from(master)) }?;
    Ok(Arc::new(terminal))
}

impl InputEnd {
    /// Writes all of `bytes`, waiting for the command to read. A command that reads no more is no
    /// error: it just gets nothing more.
    pub(super) async fn write(&mut self, mut bytes: Bytes) {
        self.use_pipe();
        let outcome = match self {
            Self::Unused(_) => Ok(()),
            Self::Pipe(pipe) => pipe.write_all(&bytes).await,
            Self::Terminal(terminal) => write_terminal(terminal, &mut bytes).await,
            Self::Closed => Ok(()),
        };
        if outcome.is_err() {
            *self = Self::Closed;
        }
    }

    fn use_pipe(&mut self) {
        if !matches!(self, Self::Unused(_)) {
            return;
        }
        if let Self::Unused(fd) = std::mem::replace(self, Self::Closed)
            && let Ok(pipe) = sender(fd)
        {
            *self = Self::Pipe(pipe);
        }
    }

    /// End of input. A terminal stays open and is told.
    pub(super) async fn close(&mut self) {
        match self {
            Self::Unused(_) | Self::Pipe(_) => *self = Self::Closed,
            Self::Terminal(_) => self.write(Bytes::from_static(&[END_OF_TRANSMISSION])).await,
            Self::Closed => {}
        }
    }

    /// Tells the terminal its size; pipes have none.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        let Self::Terminal(terminal) = self else { return };
        if !(1..=1000).contains(&columns) || !(1..=1000).contains(&rows) {
            return;
        }
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the kernel reads one `winsize`. It fails only on what
        // is no terminal any more.
        let _ = unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) };
    }

    /// Signals the terminal's foreground process group; false if there is none.
    pub(super) fn signal_foreground(&self, signal: Signal) -> bool {
        let Self::Terminal(terminal) = self else { return false };
        match tcgetpgrp(terminal.get_ref()) {
            Ok(group) if group > Pid::from_raw(1) => killpg(group, signal).is_ok(),
            Ok(_) | Err(_) => false,
        }
    }
}

async fn write_terminal(terminal: &Terminal, bytes: &mut Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = terminal.writable().await?;
        match ready.try_io(|terminal| terminal.get_ref().write(bytes)) {
            Ok(written) => drop(bytes.split_to(written?)),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

impl OutputEnd {
    /// Sends everything the command writes, until all writers are gone; a second after the command
    /// itself ended, what is there by then is the last.
    pub(super) async fn forward(
        mut self,
        output: &mpsc::Sender<Output>,
        exited: &CancellationToken,
    ) {
        let late = async {
            exited.cancelled().await;
            sleep(DRAIN).await;
        };
        tokio::pin!(late);
        let mut left: Option<usize> = None;
        loop {
            let mut buffer = BytesMut::with_capacity(PIECE.min(left.unwrap_or(PIECE)));
            if left == Some(0) {
                return;
            }
            let read = if left.is_some() {
                // These bytes are there already.
                self.source.read(&mut buffer).await
            } else {
                tokio::select! {
                    biased;
                    () = &mut late => {
                        left = Some(self.source.waiting());
                        continue;
                    }
                    read = self.source.read(&mut buffer) => read,
                }
            };
            match read {
                // A terminal whose other side is closed by everybody reads as an I/O error.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    left = left.map(|left| left.saturating_sub(length));
                    if output.send((self.wrap)(buffer.freeze())).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Source {
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read_buf(buffer).await,
            Self::Terminal(terminal) => {
                buffer.resize(buffer.capacity(), 0);
                loop {
                    let mut ready = terminal.readable().await?;
                    if let Ok(read) = ready.try_io(|terminal| terminal.get_ref().read(buffer)) {
                        buffer.truncate(*read.as_ref().unwrap_or(&0));
                        return read;
                    }
                }
            }
        }
    }

    /// Bytes that can be read without waiting.
    fn waiting(&self) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: the descriptor is open and the kernel writes one int.
        match unsafe { bytes_waiting(self.as_raw(), &raw mut count) } {
            Ok(_) => usize::try_from(count).unwrap_or(0),
            Err(_) => 0,
        }
    }

    fn as_raw(&self) -> RawFd {
        let fd: BorrowedFd<'_> = match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Terminal(terminal) => terminal.as_fd(),
        };
        fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_written_before_the_end_reaches_even_a_slow_reader() {
        let (from_command, mut command) = io::pipe().unwrap();
        // As much as a pipe holds; the writing end stays open, as in a background process.
        command.write_all(&[7; 64 * 1024]).unwrap();
        let end = OutputEnd {
            source: Source::Pipe(receiver(from_command.into()).unwrap()),
            wrap: Output::Stdout,
        };
        let (output, mut frames) = mpsc::channel(1);
        let exited = CancellationToken::new();
        exited.cancel();
        let forwarding = async {
            end.forward(&output, &exited).await;
            drop(output);
        };
        let reading = async {
            let mut length = 0;
            // Each frame is taken only long after the drain is over.
            loop {
                sleep(DRAIN * 3).await;
                match frames.recv().await {
                    Some(Output::Stdout(bytes)) => length += bytes.len(),
                    Some(Output::Stderr(_) | Output::Exit(_)) => unreachable!("only stdout"),
                    None => return length,
                }
            }
        };
        let both = async { tokio::join!(forwarding, reading).1 };
        assert_eq!(timeout(Duration::from_secs(600), both).await, Ok(64 * 1024));
        drop(command);
    }
}
