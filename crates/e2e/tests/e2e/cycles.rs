//! Nothing that was written is lost, however often a machine stands still, goes to disk and is forked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use skerry_e2e::{Options, Server, WORKSPACES, size};

/// Between two looks at everything that was ever written, on the disk itself.
const FULL_CHECK_EVERY: usize = 10;

/// A writer in the background that nobody waits for: it goes round a hundred files, each of which is
/// whole or not there, with its checksum as its first line. It says how far it is in memory.
const BACKGROUND_WRITER: &str = r#"
import hashlib, os, time
os.makedirs("/root/ring", exist_ok=True)
n = 0
while True:
    n += 1
    body = os.urandom(3000)
    path = "/root/ring/%d" % (n % 100)
    with open(path + ".new", "wb") as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    os.rename(path + ".new", path)
    with open("/run/ring.new", "w") as file:
        file.write(str(n))
    os.rename("/run/ring.new", "/run/ring")
    time.sleep(0.2)
"#;

/// Everything that was acknowledged is there, and what the writer in the background wrote is whole; prints
/// how much was acknowledged.
const VERIFY: &str = r#"
import hashlib, os
for name in os.listdir("/root/ring"):
    if not name.endswith(".new"):
        line, body = open("/root/ring/" + name, "rb").read().split(b"\n", 1)
        assert hashlib.sha256(body).hexdigest().encode() == line, name
names = os.listdir("/root/acknowledged")
for name in names:
    assert open("/root/acknowledged/" + name).read() == 1000 * (name + " "), name
print(len(names))
"#;

async fn begin_to_write(server: &Server, id: &str) -> Result<()> {
    let path = format!("{WORKSPACES}/{id}/files/content?path=/root/writer");
    let url = format!("{}{path}", server.url);
    ensure!(server.http.put(url).body(BACKGROUND_WRITER).send().await?.status().is_success());
    let begin = "setsid python3 /root/writer < /dev/null > /dev/null 2>&1 & \
                 until [ -s /run/ring ]; do sleep 0.05; done; mkdir /root/acknowledged";
    server.run(id, begin).await?;
    Ok(())
}

/// Writes one more file. It is not synced, for memory is kept as well.
async fn write(server: &Server, id: &str, number: usize) -> Result<()> {
    let path = format!("{WORKSPACES}/{id}/files/content?path=/root/acknowledged/{number}");
    let body = format!("{number} ").repeat(1000);
    let answer = server.http.put(format!("{}{path}", server.url)).body(body).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(())
}

/// How far the writer in the background is.
async fn written(server: &Server, id: &str) -> Result<u64> {
    let url = format!("{}{WORKSPACES}/{id}/files/content?path=/run/ring", server.url);
    let answer = server.http.get(url).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(answer.text().await?.parse()?)
}

/// Looks at everything that was written: as it is in memory or, from the disk, as it is there.
async fn verify(server: &Server, id: &str, look: Look, count: usize) -> Result<()> {
    if let Look::AtTheDisk = look {
        server.run(id, "sync; echo 3 > /proc/sys/vm/drop_caches").await?;
    }
    let path = format!("{WORKSPACES}/{id}/exec");
    let body = json!({"argv": ["python3", "-c", VERIFY], "timeout_seconds": 600});
    let found = server.expect(200, "POST", &path, Some(body)).await?;
    ensure!(found["stdout"] == format!("{count}\n"), "{count} were written: {found}");
    Ok(())
}

/// What is looked at.
#[derive(Clone, Copy)]
enum Look {
    AtMemory,
    AtTheDisk,
}

/// What is done to a machine in one cycle.
#[derive(Clone, Copy)]
enum Act {
    Pause,
    Suspend,
    Snapshot,
    Fork,
}

/// One cycle: what is done, and when the server dies.
struct Turn {
    act: Act,
    server_dies: bool,
    server_dies_in_it: bool,
}

/// Cycles in an order of no kind, so that everything follows upon everything; the same in every run.
struct Turns(StdRng);

impl Turns {
    fn draw(&mut self) -> Turn {
        let act = match self.0.random_range(0..10) {
            0..3 => Act::Pause,
            3..5 => Act::Suspend,
            5..9 => Act::Snapshot,
            _ => Act::Fork,
        };
        Turn {
            act,
            server_dies: self.0.random_ratio(1, 5),
            server_dies_in_it: self.0.random_ratio(1, 5),
        }
    }
}

/// What was done to a machine, and how often.
#[derive(Default)]
struct Done {
    pauses: usize,
    suspensions: usize,
    snapshots: usize,
    forks: usize,
    deaths: usize,
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_in_cycles_of_pause_suspend_snapshot_and_fork() -> Result<()>
{
    let cycles = size("SKERRY_TEST_CYCLES", 20);
    let mut server = Server::start(Options::default()).await?;
    let mut id = server.create(json!({"name": "machine 0", "memory_mib": 256})).await?;
    begin_to_write(&server, &id).await?;
    let (mut done, mut ring) = (Done::default(), 0);
    let mut turns = Turns(StdRng::seed_from_u64(size("SKERRY_TEST_SEED", 2) as u64));
    let began = Instant::now();
    for cycle in 1..=cycles {
        write(&server, &id, cycle).await?;
        let went_round = written(&server, &id).await?;
        ensure!(went_round >= ring, "the writer is at {went_round} after {ring}");
        ring = went_round;
        let turn = turns.draw();
        if turn.server_dies {
            server.kill_9().await?;
            server.spawn().await?;
            done.deaths += 1;
        }
        match turn.act {
            // The machine goes on in its fork, and what it was forked from is gone.
            Act::Fork => {
                let name = format!("machine {cycle}");
                let body = json!({"count": 1, "name": name});
                let forked = server.ask(&id, "fork", Some(body)).await?;
                let fork = &forked["workspaces"][0];
                ensure!(fork["state"] == "running", "{forked}");
                let fork = fork["id"].as_str().context("no fork")?.to_owned();
                verify(&server, &id, Look::AtMemory, cycle).await?;
                server.delete(&id).await?;
                id = fork;
                done.forks += 1;
            }
            Act::Snapshot => {
                let taken = server.ask(&id, "snapshots", Some(json!({"name": "point"}))).await?;
                ensure!(taken["state"] == "ready", "{taken}\n{}", server.log());
                let path = "/skerry/v1/snapshots/point?wait=60";
                server.expect(200, "DELETE", path, None).await?;
                done.snapshots += 1;
            }
            Act::Suspend => {
                server.ask(&id, "suspend", None).await?;
                if turn.server_dies_in_it {
                    server.kill_9().await?;
                    server.spawn().await?;
                    done.deaths += 1;
                }
                server.ask(&id, "resume", None).await?;
                done.suspensions += 1;
            }
            Act::Pause => {
                server.ask(&id, "pause", None).await?;
                if turn.server_dies_in_it {
                    server.kill_9().await?;
                    server.spawn().await?;
                    done.deaths += 1;
                }
                server.ask(&id, "resume", None).await?;
                done.pauses += 1;
            }
        }
        if cycle % FULL_CHECK_EVERY == 0 || cycle == cycles {
            verify(&server, &id, Look::AtTheDisk, cycle).await?;
        }
        if cycle % 100 == 0 {
            println!("{cycle} cycles after {:?}, the writer is at {ring}", began.elapsed());
        }
    }
    // Without its memory, what the disk has is the same.
    server.run(&id, "sync").await?;
    server.ask(&id, "stop", None).await?;
    server.ask(&id, "start", None).await?;
    verify(&server, &id, Look::AtTheDisk, cycles).await?;
    let Done { pauses, suspensions, snapshots, forks, deaths } = done;
    println!(
        "{cycles} cycles in {:?}: {pauses} pauses, {suspensions} suspensions, {snapshots} snapshots, \
         {forks} forks, {deaths} deaths of the server; {cycles} acknowledged files and {ring} of the \
         writer, none lost",
        began.elapsed()
    );
    server.finish().await
}

#[tokio::test]
async fn a_request_while_a_workspace_is_being_suspended_cancels_that() -> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    let body = json!({"name": "box", "memory_mib": 256, "auto_resume": true});
    let id = server.create(body).await?;
    server.run(&id, "echo early > /run/mark; echo early > /root/mark").await?;
    let item = format!("{WORKSPACES}/{id}");
    let processes = server.census().process_ids();
    // The waits of a suspension: at each it stands still here, so that what follows comes in its middle.
    for point in ["suspension_frozen", "suspension_saved", "state_closed"] {
        for request in ["resume", "exec"] {
            server.kill_9().await?;
            server.spawn_with(&[("SKERRY_FAULT", &format!("{point}:hang"))]).await?;
            let strikes = server.log().matches("planned fault").count();
            server.until(&item, |answer| answer["state"] == "running").await?;
            server.expect(200, "POST", &format!("{item}/suspend"), None).await?;
            let deadline = Instant::now() + skerry_e2e::server::READY_WITHIN;
            let mut look = tokio::time::interval(Duration::from_millis(20));
            while server.log().matches("planned fault").count() == strikes {
                ensure!(Instant::now() < deadline, "{point} was not reached:\n{}", server.log());
                look.tick().await;
            }
            let now = server.expect(200, "GET", &item, None).await?;
            ensure!(now["state"] == "suspending", "{point}: {now}");
            if request == "resume" {
                ensure!(server.ask(&id, "resume", None).await?["state"] == "running", "{point}");
            }
            let marks = server.run(&id, "cat /run/mark /root/mark; echo more > /root/more").await?;
            ensure!(marks == "early\nearly\n", "{point}: {marks}");
            let now = server.expect(200, "GET", &item, None).await?;
            ensure!(now["state"] == "running" && now["incarnation"] == 1, "{point}: {now}");
            ensure!(server.census().process_ids() == processes, "{point}: another VM runs");
        }
    }
    server.finish().await
}
