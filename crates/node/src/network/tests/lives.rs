//! Places come and go, servers die, and nothing is left.

use std::{fs, io};

use skerry_model::{NetworkPolicy, PrivateAddress};

use super::{
    super::{
        Namespace, NetworkHolding, filter, links::Links, missing_capability, number_of_port, rules,
        tap, wiring,
    },
    ground::Ground,
};
use crate::Error;

#[test]
fn after_two_hundred_lives_nothing_is_left() {
    let ground = Ground::with_places_ahead(2);
    while ground.network.refill_one().unwrap() {}
    for _ in 0..200 {
        let guest = ground.guest(&NetworkPolicy::default());
        ground.network.release(&guest.holding).unwrap();
        ground.network.refill_one().unwrap();
    }
    assert_eq!(ground.network.ready(), 2);
    assert_eq!(ground.network.addresses().in_use(), 0);
    assert_eq!((ground.namespaces().len(), ground.ports().len()), (3, 2), "two wait, and the hub");
    let routes = ground.network.hub.enter(|| fs::read_to_string("/proc/thread-self/net/route"));
    assert_eq!(routes.unwrap().lines().count(), 1, "the heading");
    ground.network.close().unwrap();
    assert_eq!(ground.namespaces(), [""; 0]);
}

#[test]
fn whatever_a_server_died_making_is_swept_away_by_the_next() {
    let ground = Ground::new();
    let (hub, terrain) = (&ground.network.hub, &ground.network.terrain);
    let at = |number| ground.network.names(number);
    let NetworkHolding { namespace, .. } = at(0);
    fs::write(format!("/run/netns/{namespace}"), "").unwrap();
    Namespace::make(&at(1).namespace).unwrap();
    let with_tap = Namespace::make(&at(2).namespace).unwrap();
    with_tap.enter(|| tap::make("tap0").map(drop)).unwrap();
    let joined = Namespace::make(&at(3).namespace).unwrap();
    let port = at(3).port;
    joined.enter(|| Links::open().make_pair("up0", &port, std::os::fd::AsFd::as_fd(hub))).unwrap();
    let whole = at(4);
    drop(wiring::make_vm_side(&whole.namespace, &whole.port, hub, terrain).unwrap());
    // The cable is gone, the name is not: half of an undoing.
    let half = at(5);
    drop(wiring::make_vm_side(&half.namespace, &half.port, hub, terrain).unwrap());
    hub.enter(|| Links::open().remove(&half.port)).unwrap();

    let next = ground.reopened();
    next.adopt(&whole);
    next.sweep().unwrap();
    assert_eq!(ground.namespaces(), [format!("skerry-{}", ground.tag), whole.namespace.clone()]);
    assert_eq!(ground.ports(), std::slice::from_ref(&whole.port));
    next.release(&whole).unwrap();
    next.release(&whole).unwrap();
    assert_eq!(ground.ports(), [""; 0]);
}

#[test]
fn a_vm_goes_on_while_its_server_is_replaced_and_can_be_told_a_new_policy() {
    let ground = Ground::new();
    let (client, server) =
        (ground.guest(&NetworkPolicy::default()), ground.guest(&NetworkPolicy::default()));
    let next = ground.reopened();
    for guest in [&client, &server] {
        next.adopt(&guest.holding);
        assert!(next.addresses().claim(guest.address()).is_some());
    }
    next.sweep().unwrap();
    let open = [(client.address(), skerry_model::Transport::Tcp, 80, 80)];
    let (owner, policy) = (super::ground::OWNER, super::ground::policy);
    next.apply(owner, &server.holding, server.address(), &policy(&[], &open)).unwrap();
    next.apply(owner, &client.holding, client.address(), &policy(&[server.address()], &[]))
        .unwrap();
    let (client, server) = (client.boot(), server.boot());
    let _listening = server.listen(80);
    client.connect(server.address().0, 80).unwrap();
    assert_ne!(next.reserve().map(|new| next.holding(&new)).unwrap(), client.guest.holding);
}

#[test]
fn a_place_is_given_back_with_the_names_it_was_taken_under() {
    let ground = Ground::with_places_ahead(1);
    assert!(ground.network.refill_one().unwrap());
    assert!(!ground.network.refill_one().unwrap(), "as many as were asked for");
    let reserved = ground.network.reserve().unwrap();
    let holding = ground.network.holding(&reserved);
    assert!(Namespace::exists(&holding.namespace), "it was made ahead");
    let second = ground.network.reserve().unwrap();
    assert!(!Namespace::exists(&ground.network.holding(&second).namespace));
    drop(ground.network.make(reserved).unwrap());
    ground.network.release(&holding).unwrap();
    assert!(!Namespace::exists(&holding.namespace));
}

#[test]
fn names_fit_where_they_have_to() {
    let largest = format!("{}{}", wiring::HUB_PORT_PREFIX, 99_999);
    assert!(largest.len() < nix::libc::IFNAMSIZ);
    assert_eq!(number_of_port(&largest), Some(99_999));
    assert_eq!(number_of_port("lo"), None);
    let too_long = tap::make("a-name-of-16-byt").unwrap_err();
    assert_eq!(too_long.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_transaction_of_any_length_that_is_refused_changes_nothing_and_says_so() {
    let ground = Ground::new();
    let guest = ground.guest(&NetworkPolicy::default());
    // The library's count of answers is in words of 64.
    for rules in 55..66 {
        guest.around(|| {
            let mut table = filter::Transaction::change(filter::Family::Ip, "skerry");
            (0..rules).for_each(|_| table.rule("out").counted().accept());
            table.rule("no-such-chain").counted().accept();
            assert!(table.commit().is_err(), "{rules} rules");
            Ok(())
        });
    }
    guest.around(|| rules::apply(&ground.network.terrain, &NetworkPolicy::default(), &Vec::new()));
}

#[test]
fn a_server_without_the_capabilities_is_told_which() {
    assert_eq!(missing_capability("CapEff:\t000001ffffffffff\n"), None);
    assert_eq!(missing_capability("CapEff:\t0000000000200000\n"), Some("CAP_NET_ADMIN"));
    assert_eq!(missing_capability("CapEff:\t0000000000001000\n"), Some("CAP_SYS_ADMIN"));
    assert_eq!(missing_capability(""), Some("CAP_NET_ADMIN"));
}

#[test]
fn a_namespace_that_is_not_there_is_an_error_that_names_it() {
    let ground = Ground::new();
    let holding = ground.network.names(7);
    let address = PrivateAddress(std::net::Ipv4Addr::new(10, 201, 0, 9));
    let apply = |holding| {
        let owner = super::ground::OWNER;
        ground.network.apply(owner, holding, address, &NetworkPolicy::default())
    };
    let Err(Error::Io { context, .. }) = apply(&holding) else {
        panic!("there is no such namespace")
    };
    assert!(context.contains(&holding.namespace), "{context}");
}
