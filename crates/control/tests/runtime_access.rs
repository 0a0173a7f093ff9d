//! Tokens that open the inside of one workspace, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::time::Duration;

use ground::{by_id, running};
use skerry_control::testing;
use skerry_model::{ErrorKind, Secret};

#[tokio::test]
async fn a_token_opens_its_workspace_for_an_hour_and_outlives_a_restart() {
    let mut test = testing::open().await;
    let caller = test.caller().await;
    let workspace = test.control.create_workspace(&caller, running()).await.unwrap();
    let which = by_id(&workspace);
    let closed = test.control.make_runtime_token(&caller, &which).await.unwrap_err();
    assert!(matches!(closed.kind(), ErrorKind::Forbidden(_)), "{closed}");
    let token = test.control.open_runtime(&caller, &which).await.unwrap();
    assert!(!format!("{token:?}").contains(token.secret.expose()));
    test = test.reopen().await;
    let visit = test.control.runtime_visit(&token.secret).await.unwrap();
    assert_eq!((visit.workspace, visit.caller.account_id()), (workspace.id, caller.account_id()));
    // No key of the account is one.
    for other in [testing::KEY, "", "rt_", "rt_x"] {
        let refused = test.control.runtime_visit(&Secret::new(other)).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Unauthenticated), "{refused}");
    }
    test.advance(Duration::from_secs(3599));
    test.control.runtime_visit(&token.secret).await.unwrap();
    test.advance(Duration::from_secs(1));
    test.control.runtime_visit(&token.secret).await.unwrap_err();
}

#[tokio::test]
async fn tokens_end_when_they_are_replaced_when_access_is_closed_and_for_strangers() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (stranger, _) = test.other_caller("other").await;
    let workspace = test.control.create_workspace(&caller, running()).await.unwrap();
    let (control, which) = (&test.control, by_id(&workspace));
    let first = control.open_runtime(&caller, &which).await.unwrap();
    let second = control.make_runtime_token(&caller, &which).await.unwrap();
    control.runtime_visit(&first.secret).await.unwrap();
    for refused in [
        control.open_runtime(&stranger, &which).await.map(drop),
        control.make_runtime_token(&stranger, &which).await.map(drop),
        control.close_runtime(&stranger, &which).await.map(drop),
        control.is_runtime_open(&stranger, &which).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotFound { .. }), "{error}");
    }
    let (_, third) = control.replace_runtime_tokens(&caller, &which).await.unwrap();
    for ended in [&first, &second] {
        control.runtime_visit(&ended.secret).await.unwrap_err();
    }
    control.runtime_visit(&third.secret).await.unwrap();
    control.close_runtime(&caller, &which).await.unwrap();
    control.runtime_visit(&third.secret).await.unwrap_err();
    assert!(!control.is_runtime_open(&caller, &which).await.unwrap());
}
