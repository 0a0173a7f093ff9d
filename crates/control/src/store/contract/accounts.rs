//! Accounts, keys and projects.

use skerry_model::{AccountId, ApiKeyId, ProjectId};

use super::{at, key, owner};
use crate::{
    ApiKey, Project,
    store::{Account, KeyRemoval, Store, StoredKey, Write},
};

pub(crate) async fn an_account_is_made_once_with_its_default_project(store: &Store) {
    let owner = owner(store, 1).await;
    let again = Account { id: AccountId::from_u128(99), ..owner.account.clone() };
    let other = Project { id: ProjectId::from_u128(99), ..owner.project.clone() };
    let found = store.ensure_account(&again, &other).await.unwrap();
    assert_eq!(found, (owner.account.clone(), false));
    assert_eq!(store.list_projects(owner.account.id).await.unwrap(), vec![owner.project]);
}

pub(crate) async fn a_configured_key_replaces_the_one_before(store: &Store) {
    let owner = owner(store, 1).await;
    let (first, second, own) = (key(&owner, 1), key(&owner, 2), key(&owner, 3));
    store.insert_key(&own).await.unwrap();
    store.ensure_bootstrap_key(&first).await.unwrap();
    // The same secret again keeps its record.
    let same = StoredKey {
        key: ApiKey { id: ApiKeyId::from_u128(77), ..first.key.clone() },
        ..first.clone()
    };
    store.ensure_bootstrap_key(&same).await.unwrap();
    let found = store.key_owner(&first.hash).await.unwrap().unwrap();
    assert_eq!((found.key_id, found.account), (first.key.id, owner.account.clone()));
    assert_eq!(found.default_project_id, owner.project.id);
    store.ensure_bootstrap_key(&second).await.unwrap();
    assert_eq!(store.key_owner(&first.hash).await.unwrap(), None);
    assert!(store.key_owner(&second.hash).await.unwrap().is_some());
    assert!(store.key_owner(&own.hash).await.unwrap().is_some());
    // A key the tenant made and then configured is one key, not two.
    store.ensure_bootstrap_key(&own).await.unwrap();
    assert_eq!(store.list_keys(owner.account.id).await.unwrap(), vec![own.key]);
}

pub(crate) async fn a_revoked_key_opens_nothing_from_then_on(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let (first, second) = (key(&owner, 1), key(&owner, 2));
    store.insert_key(&first).await.unwrap();
    store.insert_key(&second).await.unwrap();
    let foreign = store.remove_key(other.account.id, first.key.id).await.unwrap();
    assert_eq!(foreign, KeyRemoval::NotFound);
    let removed = store.remove_key(owner.account.id, first.key.id).await.unwrap();
    assert_eq!(removed, KeyRemoval::Removed);
    assert_eq!(store.key_owner(&first.hash).await.unwrap(), None);
    assert_eq!(store.list_keys(owner.account.id).await.unwrap(), vec![second.key]);
}

pub(crate) async fn the_last_key_of_an_account_stays(store: &Store) {
    let owner = owner(store, 1).await;
    let only = key(&owner, 1);
    store.insert_key(&only).await.unwrap();
    let kept = store.remove_key(owner.account.id, only.key.id).await.unwrap();
    assert_eq!(kept, KeyRemoval::LastOne);
    assert!(store.key_owner(&only.hash).await.unwrap().is_some());
}

pub(crate) async fn a_use_is_recorded_at_most_once_a_minute(store: &Store) {
    let owner = owner(store, 1).await;
    let key = key(&owner, 1);
    store.insert_key(&key).await.unwrap();
    for (now, recorded) in [(100, 100), (159, 100), (160, 160)] {
        store.touch_key(key.key.id, at(now)).await.unwrap();
        let listed = store.list_keys(owner.account.id).await.unwrap();
        assert_eq!(listed[0].last_used_at, Some(at(recorded)));
    }
}

pub(crate) async fn a_project_name_is_unique_within_its_account(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let project = |number| Project {
        id: ProjectId::from_u128(number),
        name: "same".to_owned(),
        description: Some("words".to_owned()),
        is_default: false,
        created_at: at(5),
        updated_at: at(5),
    };
    let made = store.insert_project(owner.account.id, &project(10)).await.unwrap();
    assert_eq!(made, Write::Done(project(10)));
    let twice = store.insert_project(owner.account.id, &project(11)).await.unwrap();
    assert_eq!(twice, Write::Taken);
    let elsewhere = store.insert_project(other.account.id, &project(12)).await.unwrap();
    assert_eq!(elsewhere, Write::Done(project(12)));
    let listed = store.list_projects(owner.account.id).await.unwrap();
    assert_eq!(listed, vec![owner.project, project(10)]);
    assert_eq!(store.project(owner.account.id, project(12).id).await.unwrap(), None);
}
