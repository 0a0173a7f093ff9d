//! The `sftp` subsystem, version 3 as OpenSSH speaks it, over the guest's file calls.
//!
//! Names are read, listed, renamed and removed as root; what is made belongs to the user. What the file
//! calls do not know (permission bits, times, owners, lengths, links) is done by programs of the guest
//! (`chmod`, `touch`, `chown`, `truncate`, `ln`, `rmdir`), as the user. Files are written from their
//! beginning or at their end, not in the middle.

mod handler;
mod names;
mod programs;
mod reading;
mod writing;

use std::sync::Arc;

use russh_sftp::server::{Config, run_with_config};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    channel::Fresh,
    connection::Entry,
    stream::{self, ChannelStream},
};
use handler::Files;
use names::Logins;

/// The largest request: OpenSSH sends at most this.
const REQUEST_BYTES: u32 = 256 * 1024;

/// Serves files on a channel until the client is done.
pub(super) async fn run(gateway: Arc<Gateway>, entry: Entry, fresh: Fresh) {
    let Fresh { output, input, closed, .. } = fresh;
    let _done = closed.clone().drop_guard();
    let serving = async {
        let guest = gateway.routes.enter(&entry.credential, entry.workspace).await;
        let guest = guest.map_err(|error| error.to_string())?;
        let logins = Logins::of(&*guest).await.map_err(|error| error.to_string())?;
        let used = CancellationToken::new();
        let stream = ChannelStream::new(input, &output, used.clone().drop_guard());
        let config = Config { max_client_packet_len: REQUEST_BYTES };
        // It runs until the stream's end, which comes with the channel's at the latest.
        let home = programs::home(&*guest, &entry.user).await;
        let home = home.unwrap_or_else(|| logins.home(&entry.user).to_owned());
        let files = Files::new(guest, logins, entry.user.clone(), home);
        run_with_config(stream, files, config).await;
        used.cancelled().await;
        Ok::<_, String>(())
    };
    let outcome = tokio::select! {
        outcome = serving => outcome,
        () = closed.cancelled() => return,
    };
    let last_words = async {
        let status = match outcome {
            Ok(()) => 0,
            Err(why) => {
                let text = format!("skerry: {why}\n");
                let _ = stream::error_writer(&output).write_all(text.as_bytes()).await;
                1
            }
        };
        let _ = output.exit_status(status).await;
        let _ = output.eof().await;
        let _ = output.close().await;
    };
    tokio::select! {
        () = last_words => {}
        () = closed.cancelled() => {}
    }
}
