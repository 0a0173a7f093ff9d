//! Running commands.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use skerry_agent_protocol::{
    call as path,
    frame::{Input, Output},
    limits::FRAME_PAYLOAD_MAX,
};
use skerry_internal_api::{ExecControl, ExecOutput, ExecRequest, ExecSession, NodeError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    GuestLink,
    call::{ANSWER_BEGINS_WITHIN, bounded, head_of, send, streaming},
    convert,
    failure::lost,
};

/// Pieces that wait in either direction. Each may have 64 KiB and there may be many commands, so
/// few.
const WAITING: usize = 4;

/// How the command's input ends. Dropping it hangs up.
struct InputEnd {
    /// Ends the input in good order.
    finished: CancellationToken,
    /// Breaks it off, which the agent sees as a hang-up.
    _hang_up: DropGuard,
}

impl GuestLink {
    pub(super) async fn start_command(
        &self,
        request: ExecRequest,
    ) -> Result<ExecSession, NodeError> {
        let shared = &self.shared;
        let permit = shared.permit(&shared.long_streams).await?;
        let mut requests = shared.connected().await?.requests;
        let (control, to_command) = mpsc::channel(WAITING);
        let (to_caller, output) = mpsc::channel(WAITING);
        let (finished, hung_up) = (CancellationToken::new(), CancellationToken::new());
        let input_end =
            InputEnd { finished: finished.clone(), _hang_up: hung_up.clone().drop_guard() };
        let head = head_of(&convert::exec(request, &shared.hello().1.unsaid))?;
        let body = streaming(head, input(to_command, finished, hung_up));
        let answer = send(&mut requests, path::EXEC, body);
        let answer = bounded(&shared.hold, path::EXEC, ANSWER_BEGINS_WITHIN, answer).await?;
        let shared = Arc::clone(shared);
        self.shared.tasks.spawn(async move {
            let carry = carry(answer.into_body(), to_caller, input_end, permit);
            tokio::select! {
                () = carry => {}
                () = shared.closed.cancelled() => {}
            }
        });
        Ok(ExecSession { control, output })
    }
}

/// The frames of the command's input. A caller that drops its end closes the input; a hang-up breaks
/// it off.
fn input(
    to_command: mpsc::Receiver<ExecControl>,
    finished: CancellationToken,
    hung_up: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some(to_command), move |to_command| {
        let (finished, hung_up) = (finished.clone(), hung_up.clone());
        async move {
            let mut to_command = to_command?;
            tokio::select! {
                biased;
                () = finished.cancelled() => None,
                () = hung_up.cancelled() => {
                    Some((Err(io::Error::other("the caller hung up")), None))
                }
                control = to_command.recv() => Some((Ok(frames(control?)), Some(to_command))),
            }
        }
    })
}

/// The frames of one control; long input becomes several.
fn frames(control: ExecControl) -> Bytes {
    match control {
        ExecControl::Stdin(bytes) if bytes.len() <= FRAME_PAYLOAD_MAX => {
            Input::Stdin(bytes).encode()
        }
        ExecControl::Stdin(mut bytes) => {
            let mut frames = BytesMut::new();
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(FRAME_PAYLOAD_MAX));
                frames.extend_from_slice(&Input::Stdin(piece).encode());
            }
            frames.freeze()
        }
        ExecControl::CloseStdin => Input::CloseStdin.encode(),
        ExecControl::Resize(pty) => Input::Resize { columns: pty.columns, rows: pty.rows }.encode(),
        // No signal is negative; the agent passes over what is none.
        ExecControl::Signal(number) => {
            Input::Signal(u32::try_from(number).unwrap_or_default()).encode()
        }
    }
}

/// Carries output to the caller until the command's end, the guest's loss, or the caller's going.
async fn carry(
    mut body: Incoming,
    to_caller: mpsc::Sender<Result<ExecOutput, NodeError>>,
    input_end: InputEnd,
    _permit: OwnedSemaphorePermit,
) {
    let mut buffer = BytesMut::new();
    loop {
        let output = match Output::take(&mut buffer) {
            Ok(Some(output)) => output,
            Ok(None) => {
                let frame = tokio::select! {
                    // The caller is gone; dropping body and input hangs up.
                    () = to_caller.closed() => return,
                    frame = body.frame() => frame,
                };
                match frame {
                    Some(Ok(frame)) => {
                        buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
                        continue;
                    }
                    Some(Err(error)) => return fail(&to_caller, lost(error)).await,
                    None => {
                        let error = lost("the command's stream broke off before its end");
                        return fail(&to_caller, error).await;
                    }
                }
            }
            Err(error) => return fail(&to_caller, lost(error)).await,
        };
        match output {
            Output::Stdout(bytes) => {
                if to_caller.send(Ok(ExecOutput::Stdout(bytes))).await.is_err() {
                    return;
                }
            }
            Output::Stderr(bytes) => {
                if to_caller.send(Ok(ExecOutput::Stderr(bytes))).await.is_err() {
                    return;
                }
            }
            Output::Exit(end) => {
                input_end.finished.cancel();
                // A caller that is gone does not care.
                let _ = to_caller.send(Ok(ExecOutput::Exit(convert::exit(end)))).await;
                return;
            }
        }
    }
}

async fn fail(to_caller: &mpsc::Sender<Result<ExecOutput, NodeError>>, error: NodeError) {
    // A caller that is gone does not care.
    let _ = to_caller.send(Err(error)).await;
}
