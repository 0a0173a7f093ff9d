//! Networks of workspaces, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::collections::BTreeMap;

use ground::{LONG, by_id, failure, is_running, now, provisioned, running, until};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use skerry_control::{
    Caller, CreateWorkspace, Error, ForkWorkspace, ListWorkspaces, ServerProxy, StartPolicy, Wait,
    internal_api::{NodeError, VmExit, VmPhase},
    sim_node::{Point, SimNode},
    testing::{self, TestControl},
};
use skerry_model::{
    Destination, EgressRule, EgressWish, ErrorKind, Neighbour, Neighbourhood, NetworkPolicy,
    NetworkWish, OpenPorts, Outbound, OutboundProxy, PortRange, ProxyCredentials, ProxyProtocol,
    Secret, State, Transport, Workspace, WorkspaceId, network_wish::MAX_CALLERS,
};

async fn networked() -> TestControl {
    let test = testing::open().await;
    test.node.set_network(Some(SimNode::NETWORK));
    test
}

fn port(port: u16) -> OpenPorts {
    OpenPorts { transport: Transport::Tcp, ports: PortRange::one(port).unwrap() }
}

/// Nothing but that these may connect to port 80.
fn admitting(callers: &[WorkspaceId]) -> NetworkWish {
    NetworkWish {
        callers: callers.iter().copied().collect(),
        open_ports: [port(80)].into(),
        ..NetworkWish::default()
    }
}

fn with(network: NetworkWish) -> CreateWorkspace {
    CreateWorkspace { network: Some(network), ..running() }
}

async fn create(test: &TestControl, caller: &Caller, request: CreateWorkspace) -> Workspace {
    let made = test.control.create_workspace(caller, request).await.unwrap();
    assert!(is_running(&made), "{made:?}");
    made
}

async fn wish(test: &TestControl, caller: &Caller, of: &Workspace, wish: NetworkWish) {
    let change = move |own: &mut NetworkWish| {
        *own = wish.clone();
        Ok(())
    };
    test.control.change_network(caller, &by_id(of), change).await.unwrap();
}

fn invalid(error: &Error) -> &'static str {
    let ErrorKind::Invalid(invalid) = error.kind() else { panic!("{error}") };
    invalid.field
}

fn step_failed() -> NodeError {
    NodeError::Step { step: "network_policy" }
}

#[tokio::test]
async fn a_workspace_has_its_address_and_the_whole_internet_unless_it_asks_for_less() {
    let test = networked().await;
    let caller = test.caller().await;
    let made = create(&test, &caller, running()).await;
    assert_eq!(made.private_address.unwrap().to_string(), "10.201.0.2");
    let everywhere: NetworkPolicy = NetworkPolicy {
        egress: [EgressRule::all(Destination::Anywhere)].into(),
        ..NetworkPolicy::default()
    };
    assert_eq!(test.node.policy(made.id), Some(everywhere));
    let less = create(&test, &caller, with(NetworkWish::default())).await;
    assert_eq!(test.node.policy(less.id), Some(NetworkPolicy::default()));
    assert_eq!(less.private_address.unwrap().to_string(), "10.201.0.3");
}

#[tokio::test]
async fn an_address_lasts_as_long_as_its_workspace() {
    let test = networked().await;
    let caller = test.caller().await;
    let made = create(&test, &caller, running()).await;
    let address = made.private_address;
    test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    create(&test, &caller, running()).await;
    let again = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(again.private_address, address);
    let test = test.reopen().await;
    assert_eq!(now(&test, &made).await.private_address, address);
}

#[tokio::test]
async fn a_start_is_no_success_before_its_policy_is_in_force() {
    let test = networked().await;
    let caller = test.caller().await;
    test.node.hang(Point::SetNetworkPolicy);
    let request = CreateWorkspace::new(StartPolicy::Now(Wait::No));
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    test.node.was_called("set_network_policy #1", 1).await;
    assert_eq!(now(&test, &made).await.state, State::Starting);
    assert_eq!(test.node.policy(made.id), Some(NetworkPolicy::default()));
    test.node.release(Point::SetNetworkPolicy);
    until(&test, &made, is_running).await;
    assert_ne!(test.node.policy(made.id), Some(NetworkPolicy::default()));
}

#[tokio::test]
async fn a_vm_that_cannot_be_given_its_policy_does_not_stay() {
    let test = networked().await;
    let caller = test.caller().await;
    test.node.fail_next(Point::SetNetworkPolicy, NodeError::NoCapacity("sets".to_owned()));
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    assert_eq!(failure(&made).code, "host_step_failed");
    assert_eq!(test.node.vms()[0].phase, VmPhase::Stopped);
    // One that may pass is tried again.
    test.node.fail_next(Point::SetNetworkPolicy, step_failed());
    let again = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(is_running(&again), "{again:?}");
}

#[tokio::test]
async fn a_caller_reaches_the_open_port_of_who_admits_it_until_that_is_taken_back() {
    let test = networked().await;
    let caller = test.caller().await;
    let nothing = || with(NetworkWish::default());
    let client = create(&test, &caller, nothing()).await;
    let other = create(&test, &caller, nothing()).await;
    let server = create(&test, &caller, with(admitting(&[client.id]))).await;
    test.quiet().await;
    let connects = |from: &Workspace, port| test.node.connects(from.id, server.id, port);
    assert!(connects(&client, 80) && !connects(&client, 81) && !connects(&other, 80));
    assert!(!test.node.connects(server.id, client.id, 80));
    let seen = test.control.network_of(&caller, &by_id(&client)).await.unwrap();
    assert_eq!(seen.links.iter().map(|peer| peer.id).collect::<Vec<_>>(), [server.id]);
    let seen = test.control.network_of(&caller, &by_id(&server)).await.unwrap();
    assert_eq!(seen.callers[0].address, client.private_address);

    wish(&test, &caller, &server, admitting(&[other.id])).await;
    test.quiet().await;
    assert!(!connects(&client, 80) && connects(&other, 80));
    assert_eq!(test.node.policy(client.id), Some(NetworkPolicy::default()));
    wish(&test, &caller, &server, NetworkWish::default()).await;
    test.quiet().await;
    for vm in [&client, &other, &server] {
        assert_eq!(test.node.policy(vm.id), Some(NetworkPolicy::default()));
    }
}

#[tokio::test]
async fn whoever_starts_later_is_linked_then_and_whoever_is_deleted_is_linked_no_more() {
    let test = networked().await;
    let caller = test.caller().await;
    let none = CreateWorkspace { network: Some(NetworkWish::default()), ..provisioned() };
    let client = test.control.create_workspace(&caller, none).await.unwrap();
    let server = create(&test, &caller, with(admitting(&[client.id]))).await;
    assert_eq!(test.node.policy(server.id), Some(NetworkPolicy::default()));
    test.control.start_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    test.quiet().await;
    assert!(test.node.connects(client.id, server.id, 80));
    // It stays so while it sleeps, stops and starts.
    test.control.suspend_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    test.control.resume_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    test.quiet().await;
    assert!(test.node.connects(client.id, server.id, 80));
    test.control.restart_workspace(&caller, &by_id(&server), LONG).await.unwrap();
    test.quiet().await;
    assert!(test.node.connects(client.id, server.id, 80));
    test.control.delete_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    test.quiet().await;
    assert_eq!(test.node.policy(server.id), Some(NetworkPolicy::default()));
    // The next one has its address, and is not admitted.
    let heir = create(&test, &caller, with(NetworkWish::default())).await;
    test.quiet().await;
    assert!(!test.node.connects(heir.id, server.id, 80));
}

#[tokio::test]
async fn an_address_is_free_only_after_its_neighbours_know_it_no_more() {
    let test = networked().await;
    let caller = test.caller().await;
    let client = create(&test, &caller, with(NetworkWish::default())).await;
    let server = create(&test, &caller, with(admitting(&[client.id]))).await;
    test.quiet().await;
    test.node.hang(Point::EnsureDeleted);
    test.control.delete_workspace(&caller, &by_id(&client), Wait::No).await.unwrap();
    test.node.was_called("ensure_deleted", 1).await;
    assert_eq!(test.node.policy(server.id), Some(NetworkPolicy::default()));
    test.node.release(Point::EnsureDeleted);
}

#[tokio::test]
async fn an_address_that_a_node_gave_to_another_is_nobody_elses_any_more() {
    let test = networked().await;
    let caller = test.caller().await;
    let (stranger, _) = test.other_caller("stranger").await;
    let lost = create(&test, &caller, with(NetworkWish::default())).await;
    let server = create(&test, &caller, with(admitting(&[lost.id]))).await;
    test.control.stop_workspace(&caller, &by_id(&lost), LONG).await.unwrap();
    test.node.lose(lost.id);
    let heir = create(&test, &stranger, with(NetworkWish::default())).await;
    assert_eq!(heir.private_address, lost.private_address);
    assert_eq!(now(&test, &lost).await.private_address, None);
    assert_eq!(test.node.policy(server.id), Some(NetworkPolicy::default()));
    // It comes back elsewhere and is admitted there.
    test.control.start_workspace(&caller, &by_id(&lost), LONG).await.unwrap();
    test.quiet().await;
    assert!(test.node.connects(lost.id, server.id, 80));
    assert!(!test.node.connects(heir.id, server.id, 80));
}

#[tokio::test]
async fn nobody_admits_a_workspace_of_another_account() {
    let test = networked().await;
    let caller = test.caller().await;
    let (stranger, _) = test.other_caller("stranger").await;
    let theirs = create(&test, &stranger, running()).await;
    let refused = test.control.create_workspace(&caller, with(admitting(&[theirs.id]))).await;
    assert!(matches!(refused.unwrap_err().kind(), ErrorKind::NotFound { what: "workspace" }));
    // An address names only workspaces of one's own.
    let everybody = NetworkWish {
        caller_networks: ["10.0.0.0/8".parse().unwrap()].into(),
        open_ports: [port(80)].into(),
        ..NetworkWish::default()
    };
    let server = create(&test, &caller, with(everybody)).await;
    let client = create(&test, &caller, with(NetworkWish::default())).await;
    test.quiet().await;
    assert!(test.node.connects(client.id, server.id, 80));
    assert!(!test.node.connects(theirs.id, server.id, 80));
    let change = test.control.change_network(&stranger, &by_id(&server), |_| Ok(())).await;
    assert!(matches!(change.unwrap_err().kind(), ErrorKind::NotFound { .. }));
}

#[tokio::test]
async fn every_vm_is_told_once_more_after_a_restart_and_not_again_after_that() {
    let test = networked().await;
    let caller = test.caller().await;
    let client = create(&test, &caller, with(NetworkWish::default())).await;
    let server = create(&test, &caller, with(admitting(&[client.id]))).await;
    test.quiet().await;
    let before = test.node.calls().len();
    let told = test.node.calls().iter().filter(|call| call.starts_with("set_network")).count();
    let test = test.reopen().await;
    test.compared().await;
    test.node.was_called("set_network_policy #1", told + 2).await;
    test.quiet().await;
    assert_eq!(test.node.calls().len(), before + 2);
    assert!(test.node.connects(client.id, server.id, 80));
    wish(&test, &caller, &server, admitting(&[client.id])).await;
    test.quiet().await;
    assert_eq!(test.node.calls().len(), before + 2);
}

#[tokio::test]
async fn a_change_that_the_node_does_not_take_goes_on_being_tried() {
    let test = networked().await;
    let caller = test.caller().await;
    let client = create(&test, &caller, with(NetworkWish::default())).await;
    let server = create(&test, &caller, with(NetworkWish::default())).await;
    test.node.fail_next(Point::SetNetworkPolicy, step_failed());
    test.node.fail_next(Point::SetNetworkPolicy, step_failed());
    let admit = admitting(&[client.id]);
    let change = move |own: &mut NetworkWish| {
        *own = admit.clone();
        Ok(())
    };
    // Whoever is told first fails; the wish is recorded in any case.
    let _told = test.control.change_network(&caller, &by_id(&server), change).await;
    test.quiet().await;
    assert!(test.node.connects(client.id, server.id, 80));
}

#[tokio::test]
async fn forks_ask_for_what_their_source_asks_for_and_are_somebody_else() {
    let test = networked().await;
    let caller = test.caller().await;
    let client = create(&test, &caller, with(NetworkWish::default())).await;
    let server = create(&test, &caller, with(admitting(&[client.id]))).await;
    let fork = async |which: &Workspace| {
        let request = ForkWorkspace {
            count: 1,
            name: None,
            metadata: None,
            snapshot_name: None,
            start: StartPolicy::Now(LONG),
        };
        test.control.fork_workspace(&caller, &by_id(which), request).await
    };
    let second = fork(&server).await.unwrap().workspaces.remove(0);
    let stranger = fork(&client).await.unwrap().workspaces.remove(0);
    test.quiet().await;
    assert_eq!(second.spec.network, server.spec.network);
    assert!(test.node.connects(client.id, second.id, 80));
    assert!(!test.node.connects(stranger.id, server.id, 80));
}

#[tokio::test]
async fn a_server_without_a_network_or_uplink_refuses_what_asks_for_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    assert_eq!(test.control.default_network(), NetworkWish::default());
    let made = create(&test, &caller, running()).await;
    assert_eq!(made.private_address, None);
    let ask = |wish: NetworkWish| test.control.create_workspace(&caller, with(wish));
    let everything = NetworkWish { egress: EgressWish::everything(), ..NetworkWish::default() };
    assert_eq!(invalid(&ask(everything.clone()).await.unwrap_err()), "network");
    assert_eq!(invalid(&ask(admitting(&[made.id])).await.unwrap_err()), "network");
    create(&test, &caller, with(NetworkWish::default())).await;
    assert_eq!(test.node.calls(), ["ensure_running #1", "ensure_running #1"]);

    test.node.set_network(Some(SimNode::NETWORK_WITHOUT_UPLINK));
    assert_eq!(invalid(&ask(everything).await.unwrap_err()), "egress");
    let server = create(&test, &caller, with(admitting(&[made.id]))).await;
    assert!(server.private_address.is_some());
}

fn proxy(last: u8, password: &str) -> OutboundProxy {
    OutboundProxy {
        address: [198, 51, 100, last].into(),
        port: 3128,
        protocol: ProxyProtocol::Http,
        credentials: Some(ProxyCredentials {
            username: "me".to_owned(),
            password: Secret::new(password),
        }),
    }
}

fn by(outbound: Outbound) -> NetworkWish {
    NetworkWish { egress: EgressWish::everything(), outbound, ..NetworkWish::default() }
}

#[tokio::test]
async fn a_workspaces_own_proxy_is_asked_before_it_is_recorded_and_not_again() {
    let test = networked().await;
    let caller = test.caller().await;
    let (good, broken) = (proxy(1, "hunter2"), proxy(2, "hunter2"));
    test.node.break_proxy(broken.address, broken.port, "asks for other credentials");
    let refused =
        test.control.create_workspace(&caller, with(by(Outbound::Own(broken.clone())))).await;
    assert_eq!(invalid(&refused.unwrap_err()), "proxy");
    let made = create(&test, &caller, with(by(Outbound::Own(good.clone())))).await;
    assert_eq!(test.node.policy(made.id).unwrap().proxy.as_ref(), Some(&good));
    let change = move |wish: &mut NetworkWish| {
        wish.outbound = Outbound::Own(broken.clone());
        Ok(())
    };
    let refused = test.control.change_network(&caller, &by_id(&made), change).await;
    assert_eq!(invalid(&refused.unwrap_err()), "proxy");
    assert_eq!(test.node.policy(made.id).unwrap().proxy.as_ref(), Some(&good));
    let node = std::sync::Arc::clone(&test.node);
    let asked = || node.calls().iter().filter(|call| call.starts_with("check_proxy")).count();
    assert_eq!(asked(), 3);
    wish(&test, &caller, &made, by(Outbound::Own(good.clone()))).await;
    assert_eq!(asked(), 3);
    // What it is told is there after a restart, and is not to be read in the database.
    let test = test.reopen().await;
    test.compared().await;
    test.quiet().await;
    assert_eq!(test.node.policy(made.id).unwrap().proxy, Some(good));
    let directory = test.database.parent().unwrap();
    for file in std::fs::read_dir(directory).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|seven| seven == b"hunter2"));
    }
    assert_eq!(asked(), 3);
}

#[tokio::test]
async fn a_proxy_that_the_server_has_no_more_leaves_no_way_out() {
    let name: skerry_model::ProxyName = "exit-a".parse().unwrap();
    let server = ServerProxy { proxy: proxy(1, "hunter2"), exit_address: None };
    let mut config = testing::config();
    config.outbound_proxies.insert(name.clone(), server);
    let mut test = testing::open_with(config).await;
    test.node.set_network(Some(SimNode::NETWORK));
    let caller = test.caller().await;
    let made = create(&test, &caller, with(by(Outbound::OfServer(name)))).await;
    let policy = test.node.policy(made.id).unwrap();
    assert_eq!((policy.proxy, policy.egress.len()), (Some(proxy(1, "hunter2")), 1));
    let other = Outbound::OfServer("exit-b".parse().unwrap());
    let refused = test.control.create_workspace(&caller, with(by(other))).await;
    assert_eq!(invalid(&refused.unwrap_err()), "proxy");
    test.configure(testing::config());
    let test = test.reopen().await;
    test.compared().await;
    test.quiet().await;
    let policy = test.node.policy(made.id).unwrap();
    assert_eq!((policy.proxy, policy.egress.len()), (None, 0));
}

#[tokio::test]
async fn a_network_that_is_switched_off_gives_nobody_an_address_until_it_is_back() {
    let test = networked().await;
    let caller = test.caller().await;
    let client = create(&test, &caller, with(NetworkWish::default())).await;
    let server = create(&test, &caller, with(admitting(&[client.id]))).await;
    test.control.stop_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    test.quiet().await;
    test.node.set_network(None);
    let test = test.reopen().await;
    test.compared().await;
    for of in [&client, &server] {
        assert_eq!(now(&test, of).await.private_address, None);
    }
    let started = test.control.start_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    assert_eq!((is_running(&started), started.private_address), (true, None));
    test.node.set_network(Some(SimNode::NETWORK));
    let test = test.reopen().await;
    test.compared().await;
    test.quiet().await;
    assert_eq!(now(&test, &server).await.private_address, server.private_address);
    test.control.restart_workspace(&caller, &by_id(&client), LONG).await.unwrap();
    test.quiet().await;
    assert!(test.node.connects(client.id, server.id, 80));
}

#[tokio::test]
async fn what_is_too_much_or_names_nobody_is_refused_and_changes_nothing() {
    let test = networked().await;
    let caller = test.caller().await;
    let made = create(&test, &caller, running()).await;
    let attempt = async |wish: NetworkWish| {
        let change = move |own: &mut NetworkWish| {
            *own = wish.clone();
            Ok(())
        };
        test.control.change_network(&caller, &by_id(&made), change).await
    };
    let many: Vec<WorkspaceId> =
        (0..=MAX_CALLERS).map(|n| WorkspaceId::from_u128(n as u128)).collect();
    assert_eq!(invalid(&attempt(admitting(&many)).await.unwrap_err()), "callers");
    assert_eq!(invalid(&attempt(admitting(&[made.id])).await.unwrap_err()), "callers");
    let nobody = attempt(admitting(&[WorkspaceId::from_u128(7)])).await.unwrap_err();
    assert!(matches!(nobody.kind(), ErrorKind::NotFound { what: "workspace" }));
    assert_eq!(now(&test, &made).await, made);
}

/// What a life consists of here; everything is allowed to be refused.
async fn one_thing(test: &TestControl, rng: &mut StdRng, callers: &[Caller]) {
    let control = &test.control;
    let caller = &callers[rng.random_range(0..callers.len())];
    let mut all = Vec::new();
    for one in callers {
        all.extend(control.list_workspaces(one, &ListWorkspaces::default()).await.unwrap().items);
    }
    let any = |rng: &mut StdRng| all.get(rng.random_range(0..all.len().max(1))).map(|w| w.id);
    let wish = {
        let named: Vec<WorkspaceId> =
            (0..rng.random_range(0..3)).filter_map(|_| any(rng)).collect();
        let mut wish = admitting(&named);
        if rng.random_bool(0.2) {
            wish.caller_networks.insert("10.201.0.0/29".parse().unwrap());
        }
        if rng.random_bool(0.2) {
            wish.open_ports.clear();
        }
        wish
    };
    let Some(id) = any(rng).filter(|_| !rng.random_bool(0.25)) else {
        // Names of the other account are refused as a whole; then ask for nothing.
        let asked = control.create_workspace(caller, with(wish)).await;
        if asked.is_err() {
            let asked = with(NetworkWish::default());
            control.create_workspace(caller, asked).await.unwrap();
        }
        return;
    };
    let which = skerry_control::WorkspaceRef::Id(id);
    let _refused = match rng.random_range(0..12) {
        0..=3 => {
            let change = move |own: &mut NetworkWish| {
                *own = wish.clone();
                Ok(())
            };
            control.change_network(caller, &which, change).await.map(drop)
        }
        4 => control.start_workspace(caller, &which, Wait::No).await.map(drop),
        5 => control.stop_workspace(caller, &which, Wait::No).await.map(drop),
        6 => control.restart_workspace(caller, &which, Wait::No).await.map(drop),
        7 => control.suspend_workspace(caller, &which, Wait::No).await.map(drop),
        8 => control.pause_workspace(caller, &which, Wait::No).await.map(drop),
        9 => control.delete_workspace(caller, &which, Wait::No).await.map(drop),
        10 => {
            test.node.end_vm(id, VmExit::PoweredOff);
            Ok(())
        }
        _ => {
            test.node.fail_next(Point::SetNetworkPolicy, NodeError::NoCapacity("sets".to_owned()));
            Ok(())
        }
    };
}

/// Every VM has what follows from the records, and nothing leads from one account to another.
async fn assert_as_recorded(test: &TestControl, callers: &[Caller], what: &str) {
    let mut accounts = Vec::new();
    for caller in callers {
        let listed =
            test.control.list_workspaces(caller, &ListWorkspaces::default()).await.unwrap();
        accounts.push(listed.items);
    }
    for workspaces in &accounts {
        let neighbours: BTreeMap<WorkspaceId, Neighbour> = workspaces
            .iter()
            .filter_map(|of| {
                let neighbour =
                    Neighbour { address: of.private_address?, wish: of.spec.network.clone() };
                Some((of.id, neighbour))
            })
            .collect();
        let neighbours = Neighbourhood(neighbours);
        for of in workspaces {
            let Some(policy) = test.node.policy(of.id) else { continue };
            let expected =
                neighbours.policy_of(of.id, of.private_address.unwrap(), &of.spec.network);
            assert_eq!(policy, expected, "{what}: {of:?}");
        }
    }
    let everybody: Vec<&Workspace> = accounts.iter().flatten().collect();
    for from in &everybody {
        for to in &everybody {
            if from.account_id != to.account_id {
                assert!(!test.node.connects(from.id, to.id, 80), "{what}: {from:?} to {to:?}");
            }
        }
    }
}

#[tokio::test]
async fn after_any_life_a_vm_may_do_what_the_records_say_and_no_link_leads_to_another_account() {
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut test = networked().await;
        let (other, _) = test.other_caller("other").await;
        let callers = [test.caller().await, other];
        for turn in 0..25 {
            one_thing(&test, &mut rng, &callers).await;
            if rng.random_bool(0.1) {
                test = test.reopen().await;
                test.compared().await;
            }
            if rng.random_bool(0.3) {
                test.quiet().await;
                assert_as_recorded(&test, &callers, &format!("seed {seed}, turn {turn}")).await;
            }
        }
        test.quiet().await;
        assert_as_recorded(&test, &callers, &format!("seed {seed}")).await;
    }
}
