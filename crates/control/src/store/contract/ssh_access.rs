//! Who enters workspaces by SSH.

use skerry_internal_api::SshPasswordId;
use skerry_model::{Secret, WorkspaceId};

use super::{at, insert, owner, workspace};
use crate::store::{EarlierPassword, PasswordInsertion, SshPassword, Store};

fn password(number: u128, workspace: WorkspaceId, login: &str) -> SshPassword {
    SshPassword {
        id: SshPasswordId(number),
        workspace_id: workspace,
        login: login.to_owned(),
        hash: Secret::new(format!("$argon2id${number}")),
        is_chosen: true,
        created_at: at(7),
    }
}

pub(crate) async fn an_ssh_password_is_its_logins_until_there_is_another(store: &Store) {
    let owner = owner(store, 1).await;
    let id = insert(store, &workspace(&owner, 1)).await.id;
    let put = async |password: &SshPassword, earlier| {
        store.insert_ssh_password(password, earlier, 2).await.unwrap()
    };
    let first = password(1, id, "root");
    assert_eq!(put(&first, EarlierPassword::Stays).await, PasswordInsertion::Done);
    let second = password(2, id, "root");
    assert_eq!(put(&second, EarlierPassword::Stays).await, PasswordInsertion::There);
    assert!(store.ssh_passwords(id).await.unwrap() == [first.clone()]);
    assert_eq!(put(&second, EarlierPassword::Goes).await, PasswordInsertion::Done);
    assert!(store.ssh_passwords(id).await.unwrap() == [second.clone()]);
    assert_eq!(store.ssh_password_owner(first.id).await.unwrap(), None);
    assert_eq!(store.ssh_password_owner(second.id).await.unwrap(), Some(id));
    let more = password(3, id, "ada");
    assert_eq!(put(&more, EarlierPassword::Goes).await, PasswordInsertion::Done);
    let too_many = password(4, id, "eve");
    assert_eq!(put(&too_many, EarlierPassword::Goes).await, PasswordInsertion::TooMany);
    let nowhere = password(5, WorkspaceId::from_u128(99), "root");
    assert_eq!(put(&nowhere, EarlierPassword::Goes).await, PasswordInsertion::NoWorkspace);
}

pub(crate) async fn a_workspace_closed_to_ssh_forgets_its_passwords(store: &Store) {
    let owner = owner(store, 1).await;
    let made = insert(store, &workspace(&owner, 1)).await;
    let other = insert(store, &workspace(&owner, 2)).await;
    for (number, id) in [(1, made.id), (2, other.id)] {
        let password = password(number, id, "root");
        let put = store.insert_ssh_password(&password, EarlierPassword::Goes, 1).await.unwrap();
        assert_eq!(put, PasswordInsertion::Done);
    }
    store.close_ssh(made.id).await.unwrap();
    store.close_ssh(made.id).await.unwrap();
    let both = [made.id, other.id];
    assert_eq!(store.closed_to_ssh(&both).await.unwrap(), [made.id]);
    assert!(store.ssh_passwords(made.id).await.unwrap().is_empty());
    assert_eq!(store.ssh_passwords(other.id).await.unwrap().len(), 1);
    let late = password(3, made.id, "root");
    let put = store.insert_ssh_password(&late, EarlierPassword::Goes, 1).await.unwrap();
    assert_eq!(put, PasswordInsertion::Closed);
    store.open_ssh(made.id).await.unwrap();
    let put = store.insert_ssh_password(&late, EarlierPassword::Goes, 1).await.unwrap();
    assert_eq!(put, PasswordInsertion::Done);
    // All of it goes with the workspace.
    store.close_ssh(made.id).await.unwrap();
    store.remove_workspace(made.id, made.revision).await.unwrap();
    assert!(store.closed_to_ssh(&both).await.unwrap().is_empty());
    store.close_ssh(made.id).await.unwrap();
    assert!(store.closed_to_ssh(&both).await.unwrap().is_empty());
}
