//! Two real guests on the node's own network. Nothing of it leaves the namespaces that it is made of.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]
#![allow(clippy::disallowed_methods, reason = "real guests get the real clock and randomness")]

mod support;

use skerry_internal_api::{NodeApi, StartPath, VmSpec};
use skerry_model::{
    Incarnation, NetworkPolicy, Opening, PortRange, PrivateAddress, Transport, WorkspaceId,
};
use skerry_node::{NetworkChoice, Node};
use support::real::{RealWorld, bounded, stdout};

/// Answers each connection to its port with the caller's address, until the guest ends.
const SERVER: &str = r#"
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
print("listens", flush=True)
while True:
    connection, caller = server.accept()
    connection.sendall(caller[0].encode() + b"\n")
    connection.close()
"#;

async fn serve(node: &Node, id: WorkspaceId, port: u16) {
    let pipe = format!("/tmp/said-{port}");
    let server = format!("setsid python3 -c '{SERVER}' {port} </dev/null >{pipe} 2>&1 &");
    let script = format!("mkfifo {pipe}\n{server}\nread line <{pipe} && echo $line");
    assert_eq!(stdout(node, id, &script).await, "listens\n");
}

/// What a server says, or that none is reached.
async fn ask(node: &Node, id: WorkspaceId, address: PrivateAddress, port: u16) -> String {
    let ask = format!("exec 3<>/dev/tcp/{address}/{port} && read line <&3 && echo $line");
    stdout(node, id, &format!("timeout 8 bash -c '{ask}' 2>/dev/null || echo nobody")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_and_the_one_that_booted_meet_only_where_both_let_them() {
    bounded(async {
        let mut world = RealWorld::new().await;
        world.network = NetworkChoice::On;
        world.template_budget_mib = 2048;
        let node = world.open().await;
        let (server, client) = (world.id, WorkspaceId::from_random(rand::random()));
        let booted = node.ensure_running(world.spec(1, 256)).await.unwrap();
        let there = booted.private_address.unwrap();
        node.settled().await;
        let spec = VmSpec { workspace_id: client, ..world.spec(1, 256) };
        let cloned = node.ensure_running(spec).await.unwrap();
        let here = cloned.private_address.unwrap();
        assert_eq!(
            (booted.start_path, cloned.start_path),
            (Some(StartPath::Boot), Some(StartPath::Template))
        );
        let routes = "awk '$1 == \"eth0\" { print $2, $3 }' /proc/net/route";
        for guest in [server, client] {
            // 10.0.2.1 and 10.0.2.0, in the order of the host's bytes.
            assert_eq!(
                stdout(&node, guest, routes).await,
                "00000000 0102000A\n0002000A 00000000\n"
            );
        }
        for port in [8080, 8081] {
            serve(&node, server, port).await;
        }
        assert_eq!(ask(&node, client, there, 8080).await, "nobody\n");

        let opening =
            Opening { from: here, transport: Transport::Tcp, ports: PortRange::one(8080).unwrap() };
        let open = NetworkPolicy { ingress: [opening].into(), ..NetworkPolicy::default() };
        let link = NetworkPolicy { links: [there].into(), ..NetworkPolicy::default() };
        node.set_network_policy(server, Incarnation(1), open).await.unwrap();
        assert_eq!(ask(&node, client, there, 8080).await, "nobody\n", "nothing links it");
        node.set_network_policy(client, Incarnation(1), link).await.unwrap();
        assert_eq!(ask(&node, client, there, 8080).await, format!("{here}\n"));
        assert_eq!(ask(&node, client, there, 8081).await, "nobody\n", "another port");

        let nothing = NetworkPolicy::default();
        node.set_network_policy(server, Incarnation(1), nothing).await.unwrap();
        assert_eq!(ask(&node, client, there, 8080).await, "nobody\n", "taken back");
        for guest in [server, client] {
            node.ensure_deleted(guest).await.unwrap();
        }
        assert_eq!(world.left(), Vec::<String>::new());
        node.shutdown().await;
    })
    .await;
}
