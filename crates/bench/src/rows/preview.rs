//! A visit of a port of a workspace, and bytes through it.

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::MEMORY_MIB;
use crate::{
    SAYS,
    bench::Bench,
    floor::FloorVm,
    goal::{Goal, Row, Unit},
    platform::{Api, Mode},
    samples::{Clock, Rounds, in_turns},
};

/// The server inside, on both sides.
const SERVER: &str = include_str!("inside.py");
/// Where it listens.
pub(super) const PORT: u16 = 3000;
/// What it sends at a time; requests are counted in it.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES_PER_MIB: usize = 1024 * 1024 / PIECE_BYTES;
/// The label of the workspace's host.
const SLUG: &str = "bench-front";

/// Starts the server inside and returns once it listens.
pub(super) fn starting() -> String {
    format!(
        "cat > /root/inside.py <<'END'\n{SERVER}\nEND\n\
         setsid python3 -u /root/inside.py > /root/inside.log 2>&1 < /dev/null &\n\
         until grep -q ready /root/inside.log; do sleep 0.1; done\n"
    )
}

/// A workspace with the server in it, its port published for everybody; its identity.
pub(super) async fn open(api: &Api, label: &str) -> Result<String> {
    let id = api.create_waking(MEMORY_MIB).await?.id;
    api.run(&id, &starting()).await?;
    api.publish(&id, PORT, label).await?;
    Ok(id)
}

pub(super) async fn measure(
    bench: &mut Bench,
    visits: usize,
    streams: usize,
    mib: usize,
) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    api.ensure_template(MEMORY_MIB).await?;
    let vm = template.running_clone(floor).await?;
    vm.run(&starting()).await?;
    let id = open(&api, SLUG).await?;

    let rounds = Rounds { warm_up: 10.min(visits), counted: visits };
    let of_floor = async || {
        let clock = Clock::start();
        let said = ask(&vm, 0).await?;
        let took = clock.ms();
        ensure!(said.ends_with(SAYS.as_bytes()), "{}", String::from_utf8_lossy(&said));
        Ok(took)
    };
    let of_platform = async || {
        let clock = Clock::start();
        let said = api.visit(SLUG, "/0").await?;
        let took = clock.ms();
        ensure!(said == SAYS.as_bytes(), "{}", String::from_utf8_lossy(&said));
        Ok(took)
    };
    let visited = in_turns("preview", rounds, of_floor, of_platform).await;

    let (pieces, bytes) = (mib * PIECES_PER_MIB, mib * PIECES_PER_MIB * PIECE_BYTES);
    let of_floor = async || {
        let clock = Clock::start();
        let came = ask(&vm, pieces).await?;
        let rate = clock.per_second(mib);
        ensure!(came.len() > bytes, "{} bytes came", came.len());
        Ok(rate)
    };
    let path = format!("/{pieces}");
    let of_platform = async || {
        let clock = Clock::start();
        let came = api.visit(SLUG, &path).await?;
        let rate = clock.per_second(mib);
        ensure!(came.len() == bytes, "{} bytes came", came.len());
        Ok(rate)
    };
    let rounds = Rounds { warm_up: 1, counted: streams };
    let streamed = in_turns("preview, bytes", rounds, of_floor, of_platform).await;

    vm.end().await?;
    api.delete(&id).await?;
    let path = "platform: GET of a published port on a connection that is kept, to a server on the \
                guest's loopback; floor: the same request on a connection to that port over the line \
                to the agent, made for it as the gateway makes one for each request";
    let visited = visited.into_row(
        "visit of a port",
        path,
        Unit::Milliseconds,
        &[Goal::AboveFloorAtMost(0.15)],
    );
    let name = format!("bytes from a port, {mib} MiB each");
    let streamed = streamed.into_row(
        name,
        "the same with a long answer",
        Unit::MebibytesPerSecond,
        &[Goal::TaxAtLeast(0.8)],
    );
    Ok(vec![visited, streamed])
}

/// What the server on the floor answers, from its first byte until all it has announced has come: as the
/// gateway's visitor, nobody waits for the end of the connection.
async fn ask(vm: &FloorVm, pieces: usize) -> Result<Vec<u8>> {
    let mut connection = vm.connect(PORT).await?;
    let request = format!("GET /{pieces} HTTP/1.1\r\nHost: localhost:{PORT}\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let body = if pieces == 0 { SAYS.len() } else { pieces * PIECE_BYTES };
    let (mut answer, mut whole) = (Vec::with_capacity(body + PIECE_BYTES), None);
    while whole.is_none_or(|length| answer.len() < length) {
        ensure!(connection.read_buf(&mut answer).await? > 0, "the answer is cut off");
        whole = whole.or_else(|| Some(end_of_head(&answer)? + body));
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    Ok(answer)
}

/// Where the body begins, once the whole head has come.
fn end_of_head(answer: &[u8]) -> Option<usize> {
    const EMPTY_LINE: &[u8] = b"\r\n\r\n";
    let at = answer.windows(EMPTY_LINE.len()).position(|bytes| bytes == EMPTY_LINE)?;
    Some(at + EMPTY_LINE.len())
}
