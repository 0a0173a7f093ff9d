//! Published ports.

use skerry_model::{PublishedPortId, Slug, WorkspaceId};

use super::{Owner, at, insert, owner, workspace};
use crate::{
    PortVisibility, PublishedPort,
    store::{PortInsertion, SecretHash, Store, StoredPort, Tenant, Write},
};

fn published(workspace: u128, port: u16, slug: &str) -> StoredPort {
    StoredPort {
        port: PublishedPort {
            id: PublishedPortId::from_u128(workspace * 100_000 + u128::from(port)),
            workspace_id: WorkspaceId::from_u128(workspace),
            port,
            slug: Slug::parse(slug).unwrap(),
            label: Some("web".to_owned()),
            visibility: PortVisibility::Private,
            created_at: at(5),
        },
        token: Some(SecretHash([port.to_le_bytes()[0]; 32])),
    }
}

async fn shown(store: &Store, slug: &str) -> Option<PublishedPort> {
    let found = store.port_by_slug(&Slug::parse(slug).unwrap()).await.unwrap();
    found.map(|stored| stored.port)
}

pub(crate) async fn a_published_port_goes_with_its_workspace(store: &Store) {
    let owner = owner(store, 1).await;
    let made = insert(store, &workspace(&owner, 1)).await;
    insert(store, &workspace(&owner, 2)).await;
    let (first, second) = (published(1, 3000, "front"), published(1, 80, "back"));
    for port in [&first, &second, &published(2, 3000, "other")] {
        assert_eq!(store.insert_port(port, 5).await.unwrap(), PortInsertion::Done);
    }
    let listed = store.list_ports(&[made.id]).await.unwrap();
    assert!(listed == [second.clone(), first.clone()]);
    assert!(store.port_by_slug(&first.port.slug).await.unwrap() == Some(first.clone()));

    assert_eq!(store.remove_port(made.id, 80).await.unwrap(), Some(second.port));
    assert_eq!(store.remove_port(made.id, 80).await.unwrap(), None);
    assert_eq!(shown(store, "back").await, None);
    store.remove_workspace(made.id, made.revision).await.unwrap();
    assert_eq!(shown(store, "front").await, None);
    assert!(shown(store, "other").await.is_some());
    let late = store.insert_port(&first, 5).await.unwrap();
    assert_eq!(late, PortInsertion::NoWorkspace);
}

pub(crate) async fn a_port_is_published_once_under_one_slug(store: &Store) {
    let owner = owner(store, 1).await;
    insert(store, &workspace(&owner, 1)).await;
    let first = published(1, 3000, "front");
    for (port, max, outcome) in [
        (&first, 2, PortInsertion::Done),
        (&published(1, 3000, "another"), 2, PortInsertion::Published),
        (&published(1, 80, "front"), 2, PortInsertion::SlugTaken),
        (&published(1, 80, "back"), 1, PortInsertion::TooMany),
        (&published(1, 80, "back"), 2, PortInsertion::Done),
    ] {
        assert_eq!(store.insert_port(port, max).await.unwrap(), outcome);
    }
    let mut changed = first;
    changed.port.slug = Slug::parse("back").unwrap();
    assert_eq!(store.update_port(&changed).await.unwrap(), Write::Taken);
    changed.port.slug = Slug::parse("renamed").unwrap();
    (changed.port.visibility, changed.token) = (PortVisibility::Public, None);
    assert_eq!(store.update_port(&changed).await.unwrap(), Write::Done(()));
    assert_eq!(shown(store, "front").await, None);
    assert_eq!(shown(store, "renamed").await, Some(changed.port.clone()));
    store.remove_port(changed.port.workspace_id, 3000).await.unwrap();
    assert_eq!(store.update_port(&changed).await.unwrap(), Write::Stale);
    assert_eq!(shown(store, "renamed").await, None);
}

pub(crate) async fn workspaces_are_found_by_the_beginning_of_an_identifier(store: &Store) {
    let Owner { account, project } = owner(store, 0x1111_1111 << 96).await;
    let elsewhere = owner(store, 0x2222_2222 << 96).await;
    let owner = Owner { account: account.clone(), project: project.clone() };
    let (first, second) = (0xaaaa_aaaa << 96 | 1, 0xbbbb_bbbb << 96 | 2);
    insert(store, &workspace(&owner, first)).await;
    insert(store, &workspace(&owner, second)).await;
    insert(store, &workspace(&elsewhere, 0xcccc_cccc << 96)).await;
    let found = async |prefix| -> Vec<u128> {
        let found = store.workspaces_by_prefix(prefix, 10).await.unwrap();
        found.iter().map(|workspace| workspace.id.as_u128()).collect()
    };
    assert_eq!(found(0xaaaa_aaaa).await, [first]);
    assert_eq!(found(0x1111_1111).await, [second, first]);
    assert_eq!(found(0xaaaa_aaab).await, [0_u128; 0]);
    assert_eq!(store.workspaces_by_prefix(0x1111_1111, 1).await.unwrap().len(), 1);
    let tenant = store.tenant(account.id).await.unwrap();
    assert_eq!(tenant, Some(Tenant { account, default_project_id: project.id }));
}
