//! SSH keys.

use skerry_internal_api::KeyFingerprint;
use skerry_model::SshKeyId;

use super::{at, owner};
use crate::{
    SshKey,
    store::{SshKeyInsertion, Store, Tenant},
};

fn ssh_key(number: u8) -> SshKey {
    SshKey {
        id: SshKeyId::from_u128(u128::from(number)),
        name: format!("laptop {number}"),
        public_key: format!("ssh-ed25519 AAAA{number}"),
        fingerprint: KeyFingerprint([number; 32]),
        created_at: at(i64::from(number)),
    }
}

pub(crate) async fn an_ssh_key_is_its_accounts_until_it_is_removed(store: &Store) {
    let (owner, other) = (owner(store, 1).await, self::owner(store, 2).await);
    let (first, second) = (ssh_key(1), ssh_key(2));
    for key in [&first, &second] {
        let made = store.insert_ssh_key(owner.account.id, key, 2).await.unwrap();
        assert_eq!(made, SshKeyInsertion::Done);
    }
    let listed = store.list_ssh_keys(owner.account.id).await.unwrap();
    assert_eq!(listed, vec![first.clone(), second.clone()]);
    assert_eq!(store.list_ssh_keys(other.account.id).await.unwrap(), vec![]);
    let found = store.ssh_key_owner(&first.fingerprint).await.unwrap();
    let expected = Tenant { account: owner.account.clone(), default_project_id: owner.project.id };
    assert_eq!(found, Some(expected));

    assert!(!store.remove_ssh_key(other.account.id, first.id).await.unwrap());
    assert!(store.remove_ssh_key(owner.account.id, first.id).await.unwrap());
    assert!(!store.remove_ssh_key(owner.account.id, first.id).await.unwrap());
    assert_eq!(store.ssh_key_owner(&first.fingerprint).await.unwrap(), None);
    assert_eq!(store.list_ssh_keys(owner.account.id).await.unwrap(), vec![second]);
}

pub(crate) async fn an_ssh_key_has_one_account_and_an_account_so_many_keys(store: &Store) {
    let (owner, other) = (owner(store, 1).await, self::owner(store, 2).await);
    let key = ssh_key(1);
    let made = store.insert_ssh_key(owner.account.id, &key, 1).await.unwrap();
    assert_eq!(made, SshKeyInsertion::Done);
    let again = SshKey { id: SshKeyId::from_u128(9), ..key.clone() };
    let twice = store.insert_ssh_key(other.account.id, &again, 1).await.unwrap();
    assert_eq!(twice, SshKeyInsertion::Taken);
    let more = store.insert_ssh_key(owner.account.id, &ssh_key(2), 1).await.unwrap();
    assert_eq!(more, SshKeyInsertion::TooMany);
    assert_eq!(store.list_ssh_keys(owner.account.id).await.unwrap(), vec![key]);
}
