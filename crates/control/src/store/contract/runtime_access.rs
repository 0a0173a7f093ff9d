//! Tokens that open the inside of one workspace.

use skerry_model::WorkspaceId;

use super::{at, insert, owner, workspace};
use crate::store::{EarlierTokens, SecretHash, Store, StoredRuntimeToken};

fn token(number: u8, workspace_id: WorkspaceId, ends: i64) -> StoredRuntimeToken {
    StoredRuntimeToken { hash: SecretHash([number; 32]), workspace_id, expires_at: at(ends) }
}

async fn opens(store: &Store, number: u8, now: i64) -> Option<WorkspaceId> {
    store.runtime_token_workspace(&SecretHash([number; 32]), at(now)).await.unwrap()
}

pub(crate) async fn a_runtime_token_opens_its_workspace_for_its_time(store: &Store) {
    let owner = owner(store, 1).await;
    let id = insert(store, &workspace(&owner, 1)).await.id;
    let other = insert(store, &workspace(&owner, 2)).await.id;
    let put = async |token: StoredRuntimeToken, now| {
        store.insert_runtime_token(&token, EarlierTokens::Stay, at(now), 2).await.unwrap()
    };
    assert!(!put(token(1, id, 10), 0).await, "it lets none in yet");
    assert!(!store.is_runtime_open(id).await.unwrap());
    for id in [id, id, other] {
        assert!(store.open_runtime(id).await.unwrap());
    }
    assert!(!store.open_runtime(WorkspaceId::from_u128(99)).await.unwrap());
    assert!(store.is_runtime_open(id).await.unwrap());
    assert!(put(token(1, id, 10), 0).await && put(token(9, other, 100), 0).await);
    assert_eq!(opens(store, 1, 9).await, Some(id));
    assert_eq!(opens(store, 1, 10).await, None);
    assert_eq!(opens(store, 7, 0).await, None);
    // Of too many the oldest ends; those of another workspace do not count.
    for (number, ends) in [(2, 30), (3, 30)] {
        assert!(put(token(number, id, ends), 1).await);
    }
    assert_eq!(opens(store, 1, 1).await, None);
    for (number, workspace) in [(2, id), (3, id), (9, other)] {
        assert_eq!(opens(store, number, 1).await, Some(workspace));
    }
}

pub(crate) async fn runtime_tokens_end_with_what_replaces_them_or_their_access(store: &Store) {
    let owner = owner(store, 1).await;
    let made = insert(store, &workspace(&owner, 1)).await;
    let id = made.id;
    store.open_runtime(id).await.unwrap();
    let put = async |number, earlier| {
        let token = token(number, id, 100);
        assert!(store.insert_runtime_token(&token, earlier, at(0), 8).await.unwrap());
    };
    put(1, EarlierTokens::Stay).await;
    put(2, EarlierTokens::Stay).await;
    put(3, EarlierTokens::Go).await;
    assert_eq!([opens(store, 1, 0).await, opens(store, 2, 0).await], [None, None]);
    assert_eq!(opens(store, 3, 0).await, Some(id));
    store.close_runtime(id).await.unwrap();
    store.close_runtime(id).await.unwrap();
    assert_eq!(opens(store, 3, 0).await, None);
    assert!(!store.is_runtime_open(id).await.unwrap());
    store.open_runtime(id).await.unwrap();
    assert_eq!(opens(store, 3, 0).await, None);
    put(4, EarlierTokens::Stay).await;
    store.remove_workspace(id, made.revision).await.unwrap();
    assert_eq!(opens(store, 4, 0).await, None);
    store.close_runtime(id).await.unwrap();
}
