//! What the agent does as PID 1: bring the machine up, serve its port, take the machine down.

mod console;
pub(crate) mod disk;
pub(crate) mod identity;
pub(crate) mod layout;
mod modules;
mod mounts;
mod network;
mod port;
mod power;
mod process;

use std::{path::Path, sync::Arc, thread, time::Duration};

use tokio::time::Instant;

use crate::{AgentError, Guest, freeze, guest::Machine, serve};
pub(crate) use console::log;
use port::VirtioPort;

/// On the kernel's command line: power off at once. A guest that does so has proven that the
/// accelerator it was booted on works.
const PROBE_ARGUMENT: &str = "skerry.probe";
/// How long the serial port may take to appear.
const PORT_WITHIN: Duration = Duration::from_secs(10);
/// Threads for file operations and transfers; see the limits in [`Guest`].
const BLOCKING_THREADS: usize = 48;
/// For how long one of them stays that has nothing to do: the next call need not wait for a new one.
const THREAD_IDLE: Duration = Duration::from_secs(3600);
/// From the beginning of one connection to the next, so that a port that fails at once does not keep a
/// CPU busy.
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(10);

/// Runs the machine from its first process to its power off. PID 1 alone may call this.
pub fn run() -> ! {
    if let Err(error) = boot_and_serve() {
        log(&format!("cannot go on: {error}"));
    }
    power::shut_down()
}

fn boot_and_serve() -> Result<(), AgentError> {
    mounts::mount_kernel_views().map_err(AgentError::boot("mount /proc, /sys and /dev"))?;
    console::open();
    let arguments = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if arguments.split_whitespace().any(|word| word == PROBE_ARGUMENT) {
        power::off();
    }
    log(&format!("agent {} starts", env!("CARGO_PKG_VERSION")));
    let uevents = disk::Uevents::open();
    modules::load_all();
    let root_disk =
        match disk::find_root(&uevents).map_err(AgentError::boot("find the root disk"))? {
            Some(device) => {
                log(&format!("root disk {device}"));
                Some(Arc::new(mounts::enter_root(device)?))
            }
            None => {
                log("no root disk, staying in the initial file system");
                None
            }
        };
    mounts::mount_the_rest();
    process::protect();
    if let Err(error) = network::bring_up_loopback() {
        log(&format!("loopback: {error}"));
    }
    match network::Addresses::in_arguments(&arguments) {
        Ok(None) => {}
        Ok(Some(addresses)) => {
            if let Err(error) = network::bring_up_card(addresses) {
                log(&format!("network card: {error}"));
            }
            let resolvers = Path::new(network::RESOLVERS);
            if let Err(error) = network::name_resolver(addresses, resolvers) {
                log(&format!("name resolver: {error}"));
            }
        }
        Err(argument) => log(&format!("network card: {argument:?} is not understood")),
    }
    let file_systems = match root_disk {
        Some(_) => vec![freeze::hold("/").map_err(AgentError::boot("open the root directory"))?],
        None => Vec::new(),
    };
    let machine = Machine { root_disk, workload_cgroup: process::workload_cgroup() };
    serve_port(&uevents, Guest::machine(machine, file_systems))
}

fn serve_port(uevents: &disk::Uevents, guest: Guest) -> Result<(), AgentError> {
    let guest = Arc::new(guest);
    let children = Arc::clone(guest.children());
    thread::Builder::new()
        .name(String::from("reaper"))
        .spawn(move || children.reap_forever())
        .map_err(AgentError::boot("start the reaper"))?;
    let port = port::find(uevents, PORT_WITHIN).map_err(AgentError::boot("find the port"))?;
    let port = VirtioPort::open(&port).map_err(AgentError::boot("open the port"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_IDLE)
        .build()
        .map_err(AgentError::boot("start the runtime"))?;
    log("ready for the host");
    let served = runtime.block_on(serve_connections(&guest, &port));
    // A file operation that hangs in the kernel must not keep the machine from going down.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map_err(AgentError::boot("serve the port"))
}

async fn serve_connections(guest: &Arc<Guest>, port: &VirtioPort) -> std::io::Result<()> {
    loop {
        tokio::select! {
            waited = port.wait_for_host() => waited?,
            () = guest.powering_off() => return Ok(()),
        }
        let began = Instant::now();
        if let Err(error) = serve(port.connect()?, guest).await {
            log(&format!("connection ended: {}", with_causes(&error)));
        }
        if guest.power_off_requested() {
            log("power off was asked for");
            return Ok(());
        }
        // Over already, after a connection that was one.
        tokio::time::sleep_until(began + BETWEEN_CONNECTIONS).await;
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
