//! Parts of workspaces-to-be that accounts keep.

use skerry_model::{
    Blueprint, BlueprintBody, BlueprintId, BlueprintKind, SetupRuns, SetupScript, Template,
};

use super::{Owner, SECRET_VALUE, at, owner};
use crate::store::{BlueprintInsertion, Store, Write};

fn script(owner: &Owner, number: u128, name: &str) -> Blueprint {
    Blueprint {
        id: BlueprintId::from_u128(number),
        account_id: owner.account.id,
        name: name.to_owned(),
        body: BlueprintBody::Setup(SetupScript {
            script: format!("export TOKEN='{SECRET_VALUE}'"),
            runs: SetupRuns::AtBoot,
            order: -3,
            user: Some("developer".to_owned()),
            working_dir: None,
        }),
        created_at: at(7),
        updated_at: at(8),
        revision: 0,
    }
}

async fn put(store: &Store, blueprint: &Blueprint) -> Blueprint {
    match store.insert_blueprint(blueprint, 10).await.unwrap() {
        BlueprintInsertion::Done(made) => *made,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_blueprint_is_its_accounts_and_of_its_kind(store: &Store) {
    let (owner, other) = (owner(store, 1).await, owner(store, 2).await);
    let made = put(store, &script(&owner, 1, "tools")).await;
    assert_eq!(made, Blueprint { revision: 1, ..script(&owner, 1, "tools") });
    let template = Blueprint {
        body: BlueprintBody::Template(Template::default()),
        ..script(&owner, 2, "tools")
    };
    put(store, &template).await;
    put(store, &script(&other, 3, "tools")).await;
    let kind = BlueprintKind::Setup;
    let found = store.blueprint(owner.account.id, kind, made.id).await.unwrap();
    assert_eq!(found, Some(made.clone()));
    assert_eq!(store.blueprint(other.account.id, kind, made.id).await.unwrap(), None);
    let as_template = store.blueprint(owner.account.id, BlueprintKind::Template, made.id).await;
    assert_eq!(as_template.unwrap(), None);
    let all = store.blueprints(owner.account.id, kind).await.unwrap();
    assert!(all.len() == 1 && all[0] == made, "{all:?}");

    assert!(!store.remove_blueprint(other.account.id, kind, made.id).await.unwrap());
    let as_service = store.remove_blueprint(owner.account.id, BlueprintKind::Service, made.id);
    assert!(!as_service.await.unwrap());
    assert!(store.remove_blueprint(owner.account.id, kind, made.id).await.unwrap());
    assert!(!store.remove_blueprint(owner.account.id, kind, made.id).await.unwrap());
    assert!(store.blueprints(owner.account.id, kind).await.unwrap().is_empty());
    assert_eq!(store.blueprints(other.account.id, kind).await.unwrap().len(), 1);
}

pub(crate) async fn an_account_has_so_many_blueprints_each_with_a_name_of_its_own(store: &Store) {
    let owner = owner(store, 1).await;
    put(store, &script(&owner, 1, "a")).await;
    let again = store.insert_blueprint(&script(&owner, 2, "a"), 10).await.unwrap();
    assert_eq!(again, BlueprintInsertion::NameTaken);
    let beyond = store.insert_blueprint(&script(&owner, 2, "b"), 1).await.unwrap();
    assert_eq!(beyond, BlueprintInsertion::TooMany);
    put(store, &script(&owner, 2, "b")).await;
    let all = store.blueprints(owner.account.id, BlueprintKind::Setup).await.unwrap();
    assert_eq!(all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

pub(crate) async fn a_blueprint_is_changed_only_by_who_read_it_last(store: &Store) {
    let owner = owner(store, 1).await;
    let made = put(store, &script(&owner, 1, "a")).await;
    put(store, &script(&owner, 2, "b")).await;
    let renamed = Blueprint { name: "c".to_owned(), updated_at: at(9), ..made.clone() };
    let Write::Done(written) = store.update_blueprint(&renamed).await.unwrap() else {
        panic!("it was read last")
    };
    assert_eq!(written, Blueprint { revision: 2, ..renamed.clone() });
    let kind = BlueprintKind::Setup;
    let found = store.blueprint(owner.account.id, kind, made.id).await.unwrap();
    assert_eq!(found, Some(written.clone()));
    assert_eq!(store.update_blueprint(&renamed).await.unwrap(), Write::Stale);
    let taken = Blueprint { name: "b".to_owned(), ..written };
    assert_eq!(store.update_blueprint(&taken).await.unwrap(), Write::Taken);
    store.remove_blueprint(owner.account.id, kind, made.id).await.unwrap();
    assert_eq!(store.update_blueprint(&taken).await.unwrap(), Write::Stale);
}
