//! What every implementation of the store promises. The suite is written against [`Store`] alone;
//! an implementation runs it with `store_contract!(a function that opens an empty store)`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod accounts;
mod blueprints;
mod networks;
mod ports;
mod runtime_access;
mod snapshots;
mod ssh_access;
mod ssh_keys;
mod timers;
mod together;
mod vaults;
mod workspaces;

use std::collections::BTreeMap;

use skerry_model::{
    AccountId, ApiKeyId, Demand, Desired, DisplayName, EnvVar, ImageRef, Incarnation, Lifecycle,
    Lifetime, Origin, Plan, Pool, ProjectId, RestartPolicy, Secret, Slug, State, Timestamp, Usage,
    Workspace, WorkspaceId, WorkspaceSpec,
    limits::{RequestedShape, check_shape},
    spec::{CpuKind, ImageDigest, LogRetention},
};

use super::{Account, Admission, SecretHash, Store, StoredKey, Write};
use crate::{ApiKey, ListSnapshots, ListWorkspaces, Project};

pub(crate) use accounts::*;
pub(crate) use blueprints::*;
pub(crate) use networks::*;
pub(crate) use ports::*;
pub(crate) use runtime_access::*;
pub(crate) use snapshots::*;
pub(crate) use ssh_access::*;
pub(crate) use ssh_keys::*;
pub(crate) use timers::*;
pub(crate) use together::*;
pub(crate) use vaults::*;
pub(crate) use workspaces::*;

/// A named set of tests, one for each promise.
macro_rules! store_contract {
    ($open:path) => {
        crate::store::contract::store_contract! { $open;
            an_account_is_made_once_with_its_default_project
            a_configured_key_replaces_the_one_before
            a_revoked_key_opens_nothing_from_then_on
            the_last_key_of_an_account_stays
            a_use_is_recorded_at_most_once_a_minute
            a_project_name_is_unique_within_its_account
            an_ssh_key_is_its_accounts_until_it_is_removed
            an_ssh_key_has_one_account_and_an_account_so_many_keys
            an_ssh_password_is_its_logins_until_there_is_another
            a_workspace_closed_to_ssh_forgets_its_passwords
            a_runtime_token_opens_its_workspace_for_its_time
            runtime_tokens_end_with_what_replaces_them_or_their_access
            a_blueprint_is_its_accounts_and_of_its_kind
            an_account_has_so_many_blueprints_each_with_a_name_of_its_own
            a_blueprint_is_changed_only_by_who_read_it_last
            a_vault_is_its_accounts_and_everything_in_it_goes_with_it
            a_credentials_value_comes_back_for_use_alone_until_there_is_another
            an_accounts_authority_is_the_first_that_was_kept
            the_last_requests_of_a_vault_are_kept
            a_published_port_goes_with_its_workspace
            a_port_is_published_once_under_one_slug
            workspaces_are_found_by_the_beginning_of_an_identifier
            a_record_comes_back_as_it_was_written
            a_write_with_a_stale_revision_changes_nothing
            a_slug_is_unique_in_the_whole_installation
            a_slug_that_was_given_up_is_free
            a_name_need_not_be_unique
            lists_are_newest_first_filtered_and_counted
            a_changed_identity_shows_in_lists
            what_was_written_is_read_from_then_on
            a_walk_over_everything_meets_each_record_once
            a_neighbourhood_is_an_accounts_workspaces_with_an_address
            use_is_summed_by_account
            a_start_is_admitted_without_counting_itself
            accounts_do_not_see_each_others_records
            fifty_creates_at_once_never_pass_a_limit
            of_two_creates_with_one_slug_one_is_made
            of_many_changes_to_one_revision_one_is_made
            a_removal_right_behind_a_change_leaves_nothing
            writes_that_are_refused_do_not_harm_those_beside_them
            use_is_what_the_records_say_after_any_history
            timers_come_due_in_order
            use_is_noted_without_a_new_revision
            a_use_that_was_noted_is_not_forgotten
            a_snapshot_comes_back_as_it_was_written
            a_snapshot_is_changed_only_by_who_read_it_last
            snapshots_are_admitted_by_the_plan
            lists_of_snapshots_are_filtered_and_counted
            a_start_needs_a_ready_snapshot_of_its_own_account
            a_snapshot_that_is_needed_is_not_deleted
            a_fork_is_recorded_wholly_or_not_at_all
            snapshots_of_forks_go_when_nobody_needs_them
            a_walk_over_all_snapshots_meets_each_once
        }
    };
    ($open:path; $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            let ground = $open().await;
            let bound = std::time::Duration::from_secs(60);
            tokio::time::timeout(bound, crate::store::contract::$name(&ground.0)).await.unwrap();
        }
    )*};
}
pub(super) use store_contract;

/// The value of a variable of every workspace made here.
pub(crate) const SECRET_VALUE: &str = "the value of a variable that is nobody's business";
/// The preview token of every workspace made here.
pub(crate) const PREVIEW_TOKEN: &str = "previewtokenpreviewtokenpreviewt";

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn plan() -> Plan {
    let pool = Pool { vcpu_count: 1000, memory_mib: 1_000_000, disk_mib: 1_000_000 };
    Plan::self_hosted(1000, pool, pool)
}

/// An account with its default project.
pub(crate) struct Owner {
    pub(crate) account: Account,
    pub(crate) project: Project,
}

pub(crate) async fn owner(store: &Store, number: u128) -> Owner {
    let account = Account {
        id: AccountId::from_u128(number),
        handle: format!("owner-{number}"),
        created_at: at(1),
    };
    let project = Project {
        id: ProjectId::from_u128(number),
        name: "default".to_owned(),
        description: None,
        is_default: true,
        created_at: at(1),
        updated_at: at(1),
    };
    assert_eq!(store.ensure_account(&account, &project).await.unwrap(), (account.clone(), true));
    Owner { account, project }
}

pub(crate) fn key(owner: &Owner, number: u8) -> StoredKey {
    StoredKey {
        key: ApiKey {
            id: ApiKeyId::from_u128(u128::from(number)),
            name: format!("key {number}"),
            secret_tail: "abcd".to_owned(),
            created_at: at(2),
            last_used_at: None,
        },
        account_id: owner.account.id,
        hash: SecretHash([number; 32]),
    }
}

pub(crate) fn workspace(owner: &Owner, number: u128) -> Workspace {
    let asked = RequestedShape {
        vcpu_count: Some(2),
        memory_mib: Some(1024),
        disk_mib: Some(2048),
        cpu_kind: CpuKind::Performance,
    };
    Workspace {
        id: WorkspaceId::from_u128(number),
        account_id: owner.account.id,
        project_id: owner.project.id,
        namespace: None,
        name: DisplayName::parse("a name").unwrap(),
        slug: Slug::parse(&format!("slug-{number}")).unwrap(),
        spec: WorkspaceSpec {
            origin: Origin::Image,
            image: ImageRef("base".to_owned()),
            image_digest: ImageDigest(format!("sha256:{}", "0".repeat(64))),
            shape: check_shape(&plan(), &asked).unwrap(),
            env: vec![EnvVar { key: "TOKEN".to_owned(), value: SECRET_VALUE.to_owned() }],
            lifetime: Lifetime::Permanent,
            expiry: None,
            keep_active: false,
            idle: None,
            restart: RestartPolicy::default(),
            remove_on_exit: false,
            snapshot_on_terminate: None,
            auto_resume: false,
            log_retention: LogRetention::AcrossStarts,
            workloads: skerry_model::Workloads::default(),
            vaults: Vec::new(),
            made_from: skerry_model::MadeFrom::default(),
            network: skerry_model::NetworkWish::default(),
            metadata: BTreeMap::new(),
        },
        desired: Desired::Stopped,
        state: State::Provisioned,
        incarnation: Incarnation(0),
        replace_through: Incarnation(0),
        failed_starts: 0,
        start_began_at: None,
        node_id: None,
        private_address: None,
        expires_at: None,
        last_active_at: None,
        lifecycle: Lifecycle::default(),
        preview_token: Secret::new(PREVIEW_TOKEN),
        created_at: at(3),
        updated_at: at(3),
        revision: 0,
    }
}

pub(crate) async fn insert(store: &Store, workspace: &Workspace) -> Workspace {
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let Write::Done(done) = store.insert_workspace(workspace, admission).await.unwrap() else {
        panic!("{workspace:?} was not inserted")
    };
    done
}

/// What the account uses according to its records.
pub(crate) async fn use_by_records(store: &Store, account: AccountId) -> Usage {
    let mut usage = Usage::default();
    let listed = store.list_workspaces(account, &ListWorkspaces::default()).await.unwrap();
    for workspace in &listed.items {
        usage.workspaces += 1;
        usage.owned = usage.owned.plus(&workspace.spec.shape);
        if workspace.counts_as_running() {
            usage.running = usage.running.plus(&workspace.spec.shape);
        }
    }
    let listed = store.list_snapshots(account, &ListSnapshots::default()).await.unwrap();
    for snapshot in &listed.items {
        usage.snapshots += u64::from(snapshot.purpose != skerry_model::SnapshotPurpose::Fork);
        usage.snapshot_bytes += snapshot.size_bytes;
    }
    usage
}
