//! Who enters a workspace by SSH, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::{sync::Arc, time::Duration};

use ground::{by_id, running};
use skerry_control::{
    Caller, WorkspaceRef,
    internal_api::{KeyFingerprint, RouteApi, RouteCredential, RouteError},
    testing::{self, TestControl},
};
use skerry_model::{ErrorKind, Secret, Workspace, WorkspaceId};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAmwHBWfYXtYs4ZUu6kd2aXYuQxTJ2lzGWnNNPM ada@laptop";

struct Ground {
    test: TestControl,
    caller: Caller,
    workspace: Workspace,
    routes: Arc<dyn RouteApi>,
}

/// Identifiers as hexadecimal digits.
fn read_name(text: &str) -> WorkspaceRef {
    match u128::from_str_radix(text, 16) {
        Ok(id) => WorkspaceRef::Id(WorkspaceId::from_u128(id)),
        Err(_) => WorkspaceRef::SlugOrName(text.to_owned()),
    }
}

impl Ground {
    async fn open() -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        let workspace = test.control.create_workspace(&caller, running()).await.unwrap();
        let routes = test.control.routes(read_name);
        Self { test, caller, workspace, routes }
    }

    fn which(&self) -> WorkspaceRef {
        by_id(&self.workspace)
    }

    fn name(&self) -> String {
        format!("{:032x}", self.workspace.id.as_u128())
    }

    async fn set(&self, login: Option<&str>, password: &str) {
        let control = &self.test.control;
        let password = Secret::new(password);
        control.set_ssh_password(&self.caller, &self.which(), login, &password).await.unwrap();
    }

    async fn log_in(&self, login: &str, password: &str) -> Result<RouteCredential, RouteError> {
        let logged_in = self.routes.log_in(&self.name(), login, &Secret::new(password)).await;
        logged_in.map(|(credential, workspace)| {
            assert_eq!(workspace, self.workspace.id);
            credential
        })
    }

    async fn enter(&self, credential: &RouteCredential) -> Result<(), RouteError> {
        self.routes.enter(credential, self.workspace.id).await.map(drop)
    }
}

#[tokio::test]
async fn a_password_opens_its_workspace_as_its_login_until_there_is_another() {
    let ground = Ground::open().await;
    ground.set(None, "correct horse").await;
    ground.set(Some("ada"), "battery staple").await;
    let root = ground.log_in("root", "correct horse").await.unwrap();
    ground.enter(&root).await.unwrap();
    for (login, password) in
        [("root", "battery staple"), ("root", ""), ("ada", "correct horse"), ("eve", "anything")]
    {
        assert_eq!(ground.log_in(login, password).await, Err(RouteError::NotFound), "{login}");
    }
    let ada = ground.log_in("ada", "battery staple").await.unwrap();
    // What it is for is one workspace, even of the same account.
    let other = ground.test.control.create_workspace(&ground.caller, running()).await.unwrap();
    let elsewhere = ground.routes.enter(&root, other.id).await.map(drop);
    assert_eq!(elsewhere, Err(RouteError::NotFound));
    ground.set(None, "another horse").await;
    assert_eq!(ground.enter(&root).await, Err(RouteError::NotFound));
    ground.enter(&ada).await.unwrap();
}

#[tokio::test]
async fn a_password_is_kept_as_a_hash_and_is_there_after_a_restart() {
    let mut ground = Ground::open().await;
    let control = &ground.test.control;
    let made = control.open_ssh(&ground.caller, &ground.which()).await.unwrap().unwrap();
    assert_eq!(control.open_ssh(&ground.caller, &ground.which()).await.unwrap(), None);
    ground.test = ground.test.reopen().await;
    ground.routes = ground.test.control.routes(read_name);
    let in_by_it = ground.log_in("root", made.expose()).await.unwrap();
    ground.enter(&in_by_it).await.unwrap();
    let access = ground.test.control.ssh_access(&ground.caller, &ground.which()).await.unwrap();
    assert!(access.is_open && access.has_password && !access.is_password_chosen, "{access:?}");
}

#[tokio::test]
async fn after_ten_wrong_passwords_none_is_looked_at_for_a_minute() {
    let ground = Ground::open().await;
    ground.set(None, "correct horse").await;
    for _ in 0..10 {
        assert_eq!(ground.log_in("root", "wrong horse").await, Err(RouteError::NotFound));
    }
    assert_eq!(ground.log_in("root", "correct horse").await, Err(RouteError::NotFound));
    ground.test.advance(Duration::from_secs(61));
    ground.log_in("root", "correct horse").await.unwrap();
    // Right ones are not counted.
    for _ in 0..11 {
        ground.log_in("root", "correct horse").await.unwrap();
    }
}

#[tokio::test]
async fn nobody_enters_a_workspace_that_is_closed_to_ssh() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let key = control.add_ssh_key(&ground.caller, None, KEY).await.unwrap();
    let KeyFingerprint(digest) = key.fingerprint;
    let key = RouteCredential::SshKey(KeyFingerprint(digest));
    ground.set(None, "correct horse").await;
    let password = ground.log_in("root", "correct horse").await.unwrap();
    assert_eq!(ground.routes.find(&key, &ground.name()).await, Ok(ground.workspace.id));

    control.close_ssh(&ground.caller, &ground.which()).await.unwrap();
    assert_eq!(ground.routes.find(&key, &ground.name()).await, Err(RouteError::NotFound));
    assert!(matches!(ground.enter(&key).await, Err(RouteError::Refused(_))));
    assert_eq!(ground.enter(&password).await, Err(RouteError::NotFound));
    assert_eq!(ground.log_in("root", "correct horse").await, Err(RouteError::NotFound));
    let closed = control.closed_to_ssh(std::slice::from_ref(&ground.workspace)).await.unwrap();
    assert_eq!(closed, [ground.workspace.id]);

    control.open_ssh(&ground.caller, &ground.which()).await.unwrap();
    ground.enter(&key).await.unwrap();
    assert_eq!(ground.log_in("root", "correct horse").await, Err(RouteError::NotFound));
}

#[tokio::test]
async fn passwords_and_logins_have_a_form_and_a_number() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let set = async |login: &str, password: &str| {
        let password = Secret::new(password);
        control.set_ssh_password(&ground.caller, &ground.which(), Some(login), &password).await
    };
    for (login, password) in [
        ("root", "short"),
        ("root", "eight\tchars"),
        ("root", &*"x".repeat(129)),
        ("", "correct horse"),
        ("A", "correct horse"),
        ("a b", "correct horse"),
        (&*"a".repeat(33), "correct horse"),
    ] {
        let refused = set(login, password).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Invalid(_)), "{login}: {refused:?}");
        assert!(!format!("{refused:?}").contains("horse"), "{refused:?}");
    }
    for number in 0..8 {
        set(&format!("user{number}"), "correct horse").await.unwrap();
    }
    let more = set("root", "correct horse").await.unwrap_err();
    assert!(matches!(more.kind(), ErrorKind::Conflict(_)), "{more:?}");
    set("user3", "another horse").await.unwrap();
}
