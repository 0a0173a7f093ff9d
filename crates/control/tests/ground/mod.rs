//! What several suites of tests start from.
#![allow(dead_code, unreachable_pub, reason = "no suite uses all of it")]

use std::{collections::BTreeMap, time::Duration};

use skerry_control::{
    Caller, CreateSnapshot, CreateWorkspace, Error, StartPolicy, Wait, WorkspaceRef,
    testing::{self, TestControl},
};
use skerry_model::{ErrorKind, Failure, SnapshotContents, State, Workspace};

pub const LONG: Wait = Wait::UpTo(Duration::from_secs(20));

/// A request for a workspace that runs when the answer comes.
pub fn running() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Now(LONG))
}

/// A request for a workspace that is not started.
pub fn provisioned() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Later)
}

pub fn by_id(workspace: &Workspace) -> WorkspaceRef {
    WorkspaceRef::Id(workspace.id)
}

/// A snapshot with these contents and everything else left to the defaults.
pub fn of(contents: Option<SnapshotContents>) -> CreateSnapshot {
    CreateSnapshot { name: None, contents, metadata: BTreeMap::new() }
}

/// Makes a workspace that runs, with `first` in its memory and on its disk.
pub async fn lively(test: &TestControl, caller: &Caller, request: CreateWorkspace) -> Workspace {
    let made = test.control.create_workspace(caller, request).await.unwrap();
    assert!(matches!(made.state, State::Running { .. }), "{:?}", made.state);
    put(test, &made, "first");
    made
}

/// Puts a word into its memory and on its disk.
pub fn put(test: &TestControl, workspace: &Workspace, word: &str) {
    let guest = test.node.sim_guest(workspace.id).unwrap();
    guest.hold("word", word);
    guest.put_file("/root/word", word.as_bytes());
}

/// The words in its memory and on its disk.
pub fn words(test: &TestControl, workspace: &Workspace) -> (Option<String>, Option<String>) {
    let guest = test.node.sim_guest(workspace.id).unwrap();
    let file = guest.file("/root/word").map(|bytes| String::from_utf8(bytes).unwrap());
    (guest.held("word"), file)
}

/// A word in both places.
pub fn both(word: &str) -> (Option<String>, Option<String>) {
    (Some(word.to_owned()), Some(word.to_owned()))
}

/// A word on the disk alone: a boot.
pub fn disk_only(word: &str) -> (Option<String>, Option<String>) {
    (None, Some(word.to_owned()))
}

/// The record as it is now.
pub async fn now(test: &TestControl, workspace: &Workspace) -> Workspace {
    let caller = test.caller().await;
    test.control.get_workspace(&caller, &by_id(workspace)).await.unwrap()
}

/// Waits until the record is as wanted; the test's own bound is the only clock.
pub async fn until(
    test: &TestControl,
    workspace: &Workspace,
    what: impl Fn(&Workspace) -> bool,
) -> Workspace {
    testing::until(&test.control, workspace.id, what).await
}

pub fn is_running(workspace: &Workspace) -> bool {
    matches!(workspace.state, State::Running { .. })
}

pub fn failure(workspace: &Workspace) -> &Failure {
    let State::Failed(failure) = &workspace.state else { panic!("{:?}", workspace.state) };
    failure
}

pub fn refused_by_state(error: &Error) -> &str {
    let ErrorKind::RefusedByState { reason, .. } = error.kind() else { panic!("{error}") };
    reason
}
