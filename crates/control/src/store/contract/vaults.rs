//! Vaults.

use skerry_model::{
    Secret, ServiceAuth, Vault, VaultCredential, VaultCredentialId, VaultId, VaultRequest,
    VaultService, VaultServiceId, WorkspaceId,
};

use super::{Owner, at, insert, owner, workspace};
use crate::store::{Store, VaultAuthority, VaultInsertion};

fn vault(owner: &Owner, number: u128) -> Vault {
    Vault {
        id: VaultId::from_u128(number),
        account_id: owner.account.id,
        name: format!("vault {number}"),
        description: None,
        created_at: at(7),
    }
}

fn credential(vault: VaultId, number: u128, name: &str) -> VaultCredential {
    VaultCredential {
        id: VaultCredentialId::from_u128(number),
        vault_id: vault,
        name: name.to_owned(),
        kind: "api_key".to_owned(),
        description: Some("a key".to_owned()),
        created_at: at(8),
        rotated_at: None,
    }
}

fn service(vault: VaultId, number: u128, host: &str) -> VaultService {
    VaultService {
        id: VaultServiceId::from_u128(number),
        vault_id: vault,
        host: host.parse().unwrap(),
        auth: ServiceAuth::Bearer { token: "KEY".to_owned() },
        is_enabled: true,
        description: None,
        created_at: at(9),
    }
}

fn request(vault: VaultId, number: i64) -> VaultRequest {
    VaultRequest {
        vault_id: vault,
        workspace_id: WorkspaceId::from_u128(5),
        at: at(number),
        host: "api.example".to_owned(),
        method: "GET".to_owned(),
        status: 200,
        credentials: vec!["KEY".to_owned()],
    }
}

pub(crate) async fn a_vault_is_its_accounts_and_everything_in_it_goes_with_it(store: &Store) {
    let (own, other) = (owner(store, 1).await, owner(store, 2).await);
    let (first, second) = (vault(&own, 1), vault(&own, 2));
    for one in [&first, &second] {
        assert_eq!(store.insert_vault(one, 2).await.unwrap(), VaultInsertion::Done);
    }
    let third = store.insert_vault(&vault(&own, 3), 2).await.unwrap();
    assert_eq!(third, VaultInsertion::TooMany);
    assert_eq!(store.list_vaults(own.account.id).await.unwrap(), [first.clone(), second]);
    assert!(store.list_vaults(other.account.id).await.unwrap().is_empty());
    let renamed = Vault { name: "another".to_owned(), ..first };
    assert!(store.update_vault(&renamed).await.unwrap());
    assert_eq!(store.vault(renamed.id).await.unwrap(), Some(renamed.clone()));

    let (id, secret) = (renamed.id, Secret::new("sk"));
    let added = store.insert_vault_credential(&credential(id, 1, "KEY"), &secret, 9).await.unwrap();
    assert_eq!(added, VaultInsertion::Done);
    let services = [service(id, 1, "api.example"), service(id, 2, "*.example")];
    assert_eq!(store.insert_vault_services(id, &services, 2).await.unwrap(), VaultInsertion::Done);
    assert_eq!(store.vault_services(id).await.unwrap(), services);
    let more = [service(id, 3, "b.example")];
    let outcome = store.insert_vault_services(id, &more, 2).await.unwrap();
    assert_eq!(outcome, VaultInsertion::TooMany);
    assert!(store.remove_vault_service(id, services[0].id).await.unwrap());
    assert!(!store.remove_vault_service(id, services[0].id).await.unwrap());

    let mut user = workspace(&own, 1);
    user.spec.vaults = vec![id];
    let user = insert(store, &user).await;
    assert_eq!(store.workspaces_with_vault(id).await.unwrap(), [user.id]);
    assert!(store.remove_vault(id).await.unwrap());
    assert!(!store.remove_vault(id).await.unwrap());
    assert!(store.vault_credentials(id).await.unwrap().is_empty());
    assert!(store.credential_values(&[id]).await.unwrap().is_empty());
    let late = store.insert_vault_credential(&credential(id, 9, "KEY"), &secret, 9).await.unwrap();
    assert_eq!(late, VaultInsertion::NoVault);
    let late = store.insert_vault_services(id, &more, 9).await.unwrap();
    assert_eq!(late, VaultInsertion::NoVault);
}

pub(crate) async fn a_credentials_value_comes_back_for_use_alone_until_there_is_another(
    store: &Store,
) {
    let own = owner(store, 1).await;
    let (first, second) = (vault(&own, 1), vault(&own, 2));
    for one in [&first, &second] {
        store.insert_vault(one, 9).await.unwrap();
    }
    let kept = credential(first.id, 1, "KEY");
    let put = async |credential: &VaultCredential, value: &str, max| {
        store.insert_vault_credential(credential, &Secret::new(value), max).await.unwrap()
    };
    assert_eq!(put(&kept, "one", 1).await, VaultInsertion::Done);
    assert_eq!(put(&credential(first.id, 2, "KEY"), "two", 9).await, VaultInsertion::Taken);
    assert_eq!(put(&credential(first.id, 2, "OTHER"), "two", 1).await, VaultInsertion::TooMany);
    assert_eq!(put(&credential(second.id, 3, "KEY"), "three", 9).await, VaultInsertion::Done);
    assert_eq!(store.vault_credentials(first.id).await.unwrap(), std::slice::from_ref(&kept));
    let values = async |vaults: &[VaultId]| {
        let values = store.credential_values(vaults).await.unwrap();
        let mut values: Vec<String> =
            values.iter().map(|one| format!("{}={}", one.name, one.value.expose())).collect();
        values.sort();
        values
    };
    assert_eq!(values(&[first.id]).await, ["KEY=one"]);
    assert_eq!(values(&[first.id, second.id]).await, ["KEY=one", "KEY=three"]);
    let new = Secret::new("four");
    assert!(!store.rotate_vault_credential(second.id, kept.id, &new, at(9)).await.unwrap());
    assert!(store.rotate_vault_credential(first.id, kept.id, &new, at(9)).await.unwrap());
    assert_eq!(values(&[first.id]).await, ["KEY=four"]);
    let rotated = VaultCredential { rotated_at: Some(at(9)), ..kept };
    assert_eq!(store.vault_credentials(first.id).await.unwrap(), std::slice::from_ref(&rotated));
    assert!(store.remove_vault_credential(first.id, rotated.id).await.unwrap());
    assert!(values(&[first.id]).await.is_empty());
}

pub(crate) async fn an_accounts_authority_is_the_first_that_was_kept(store: &Store) {
    let own = owner(store, 1).await;
    let id = own.account.id;
    assert_eq!(store.vault_authority(id).await.unwrap(), None);
    let made = |number: u32| VaultAuthority {
        certificate: format!("certificate {number}"),
        key: Secret::new(format!("key {number}")),
    };
    assert_eq!(store.keep_vault_authority(id, &made(1)).await.unwrap(), made(1));
    assert_eq!(store.keep_vault_authority(id, &made(2)).await.unwrap(), made(1));
    assert_eq!(store.vault_authority(id).await.unwrap(), Some(made(1)));
}

pub(crate) async fn the_last_requests_of_a_vault_are_kept(store: &Store) {
    let own = owner(store, 1).await;
    let (first, second) = (vault(&own, 1).id, vault(&own, 2).id);
    for one in [vault(&own, 1), vault(&own, 2)] {
        store.insert_vault(&one, 9).await.unwrap();
    }
    let nowhere = VaultId::from_u128(99);
    let requests = [request(first, 1), request(first, 2), request(second, 3), request(nowhere, 4)];
    store.note_vault_requests(&requests, 2).await.unwrap();
    store.note_vault_requests(&[request(first, 5)], 2).await.unwrap();
    let kept = store.vault_requests(first, 9).await.unwrap();
    assert_eq!(kept, [request(first, 5), request(first, 2)]);
    assert_eq!(store.vault_requests(first, 1).await.unwrap(), [request(first, 5)]);
    assert_eq!(store.vault_requests(second, 9).await.unwrap(), [request(second, 3)]);
    assert!(store.vault_requests(nowhere, 9).await.unwrap().is_empty());
}
