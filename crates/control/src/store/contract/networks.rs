//! Addresses and who lets others in.

use skerry_model::{
    Event, NetworkWish, OpenPorts, PortRange, PrivateAddress, Transport, Workspace,
};

use super::{at, insert, owner, workspace};
use crate::store::{Store, Write};

fn address(last: u8) -> PrivateAddress {
    PrivateAddress([10, 201, 0, last].into())
}

async fn update(store: &Store, changed: Workspace) -> Workspace {
    let Write::Done(written) = store.update_workspace(&changed, None).await.unwrap() else {
        panic!("not written")
    };
    written
}

pub(crate) async fn a_neighbourhood_is_an_accounts_workspaces_with_an_address(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let account = owner.account.id;
    let mut all = Vec::new();
    for number in 1..=3 {
        all.push(insert(store, &workspace(&owner, number)).await);
    }
    let foreign = insert(store, &workspace(&other, 4)).await;
    assert!(store.neighbourhood(account).await.unwrap().0.is_empty());
    let foreign = update(store, Workspace { private_address: Some(address(9)), ..foreign }).await;

    let one = Workspace { private_address: Some(address(1)), ..all[0].clone() };
    let mut one = update(store, one).await;
    let mut two = Workspace { private_address: Some(address(2)), ..all[1].clone() };
    two.spec.network = NetworkWish {
        callers: [one.id].into(),
        open_ports: [OpenPorts { transport: Transport::Udp, ports: PortRange::ALL }].into(),
        ..NetworkWish::default()
    };
    assert!(!store.admits_anybody(account).await.unwrap());
    let two = update(store, two).await;
    assert!(store.admits_anybody(account).await.unwrap());
    assert!(!store.admits_anybody(other.account.id).await.unwrap());
    let found = store.neighbourhood(account).await.unwrap().0;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [one.id, two.id]);
    assert_eq!((found[&one.id].address, found[&two.id].address), (address(1), address(2)));
    assert_eq!(found[&one.id].wish, NetworkWish::default());
    assert_eq!(found[&two.id].wish, two.spec.network);

    assert_eq!(store.workspaces_at(address(9)).await.unwrap(), [foreign.id]);
    assert!(store.workspaces_at(address(3)).await.unwrap().is_empty());
    // What is being deleted is nobody's neighbour, and has its address until it is gone.
    one.apply(&Event::DeleteBegun, at(20));
    let one = update(store, one).await;
    let found = store.neighbourhood(account).await.unwrap().0;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [two.id]);
    assert_eq!(store.workspaces_at(address(1)).await.unwrap(), [one.id]);
    let two = update(store, Workspace { private_address: None, ..two }).await;
    assert!(store.neighbourhood(account).await.unwrap().0.is_empty());
    assert_eq!(store.workspace(two.id).await.unwrap(), Some(two));
}
