#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    borrow::Cow,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::join_all;
use skerry_model::{
    AccountId, Demand, Desired, Secret, Vault, VaultCredential, VaultCredentialId, VaultId,
    Workspace,
};
use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use super::{
    Sqlite, usage,
    writer::{Broken, Operation},
};
use crate::{
    Error, ListWorkspaces,
    store::{
        Admission, KeyRing, Store, VaultAuthority, Write,
        contract::{
            PREVIEW_TOKEN, SECRET_VALUE, insert, owner, plan, store_contract, use_by_records,
            workspace,
        },
    },
    testing::SeededRng,
};

fn keys(database: &Path) -> KeyRing {
    KeyRing::open(&database.with_extension("key"), Arc::new(SeededRng::new(3))).unwrap()
}

async fn open(database: &Path) -> Store {
    Store::open(database, keys(database)).await.unwrap()
}

async fn empty() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (open(&directory.path().join("store.db")).await, directory)
}

store_contract!(empty);

/// A connection beside the store's own.
async fn beside(database: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(database).connect().await.unwrap()
}

/// Everything in the database's files.
fn bytes(database: &Path) -> Vec<u8> {
    let files = ["db", "db-wal"].map(|extension| database.with_extension(extension));
    files.iter().filter_map(|file| std::fs::read(file).ok()).flatten().collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn only_the_owner_can_read_the_file_and_its_logs() {
    let (store, directory) = empty().await;
    assert_eq!(store.next_due().await.unwrap(), None);
    let mut seen = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        seen += 1;
    }
    assert!(seen >= 3, "the database, its log and its keys: {seen}");
}

#[tokio::test]
async fn secrets_are_not_in_the_files() {
    let (store, directory) = empty().await;
    let owner = owner(&store, 1).await;
    let made = insert(&store, &workspace(&owner, 1)).await;
    assert_eq!(made.spec.env[0].value, SECRET_VALUE);
    let bytes = bytes(&directory.path().join("store.db"));
    assert!(holds(&bytes, made.slug.as_str()));
    assert!(!holds(&bytes, SECRET_VALUE) && !holds(&bytes, PREVIEW_TOKEN));
    assert!(!holds(&bytes, "TOKEN"), "not even the names of variables");
}

#[tokio::test]
async fn what_was_answered_is_in_a_copy_of_the_files() {
    let (store, directory) = empty().await;
    let owner = owner(&store, 1).await;
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let asked: Vec<Workspace> = (1..=100).map(|number| workspace(&owner, number)).collect();
    let made = join_all(asked.iter().map(|one| store.insert_workspace(one, admission))).await;
    assert!(made.iter().all(|outcome| matches!(outcome, Ok(Write::Done(_)))));
    // As the files are when the process is killed here: nothing was closed in order.
    let database = directory.path().join("store.db");
    let copy = directory.path().join("copy.db");
    for extension in ["db", "db-wal", "key"] {
        std::fs::copy(database.with_extension(extension), copy.with_extension(extension)).unwrap();
    }
    let found = open(&copy).await;
    let page = found.list_workspaces(owner.account.id, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(page.total, 100);
}

/// A setting of the connection that writes.
struct Setting(&'static str);

#[async_trait::async_trait]
impl Operation for Setting {
    type Answer = i64;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<i64, Error>, Broken> {
        Ok(Ok(sqlx::query_scalar(&format!("PRAGMA {}", self.0)).fetch_one(db).await?))
    }
}

async fn bare(directory: &Path) -> (Sqlite, PathBuf) {
    let database = directory.join("store.db");
    (Sqlite::open(&database, keys(&database)).await.unwrap(), database)
}

#[tokio::test]
async fn every_commit_is_synced() {
    let directory = tempfile::tempdir().unwrap();
    let (sqlite, _) = bare(directory.path()).await;
    const FULL: i64 = 2;
    assert_eq!(sqlite.writer.run(Setting("synchronous")).await.unwrap(), FULL);
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (sqlite, database) = bare(directory.path()).await;
    let pages = sqlite.writer.run(Setting("page_count")).await.unwrap();
    let store = Store::from_backend(Arc::new(sqlite));
    let owner = owner(&store, 1).await;
    let sqlite = Sqlite::open(&database, keys(&database)).await.unwrap();
    sqlite.writer.run(Setting(leak(format!("max_page_count = {pages}")))).await.unwrap();
    let limited = Store::from_backend(Arc::new(sqlite));
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let asked: Vec<Workspace> = (1..=200)
        .map(|number| {
            let mut one = workspace(&owner, number);
            one.spec.metadata.insert("k".to_owned(), "x".repeat(4000).into());
            one
        })
        .collect();
    let outcomes = join_all(asked.iter().map(|one| limited.insert_workspace(one, admission))).await;
    let mut refused = 0;
    for (one, outcome) in asked.iter().zip(outcomes) {
        let kept = limited.workspace(one.id).await.unwrap();
        match outcome {
            Ok(made) => assert_eq!(made, Write::Done(kept.unwrap())),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("full"), "{error}");
                assert_eq!(kept, None);
            }
        }
    }
    assert!(refused > 0);
    // Small ones still fit, and there is room again when there is.
    let usage = limited.usage(owner.account.id).await.unwrap();
    assert_eq!(usage, use_by_records(&limited, owner.account.id).await);
    let remaining = insert(&store, &workspace(&owner, 1000)).await;
    assert!(store.workspace(remaining.id).await.unwrap().is_some());
}

/// A text for as long as the test's process lives.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[tokio::test]
async fn a_write_whose_caller_went_away_before_it_began_is_not_made() {
    let (store, _directory) = empty().await;
    let owner = owner(&store, 1).await;
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let (gone, stays) = (workspace(&owner, 1), workspace(&owner, 2));
    {
        let mut write = std::pin::pin!(store.insert_workspace(&gone, admission));
        assert!(futures::poll!(write.as_mut()).is_pending());
    }
    insert(&store, &stays).await;
    assert_eq!(store.workspace(gone.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_use_that_was_kept_wrongly_is_put_right_at_the_next_start() {
    let (store, directory) = empty().await;
    let database = directory.path().join("store.db");
    let owner = owner(&store, 1).await;
    for number in 1..=3 {
        let desired = if number == 1 { Desired::Running } else { Desired::Stopped };
        insert(&store, &Workspace { desired, ..workspace(&owner, number) }).await;
    }
    let expected = store.usage(owner.account.id).await.unwrap();
    drop(store);
    let mut db = beside(&database).await;
    assert_eq!(usage::recount(&mut db).await.unwrap(), 0);
    for damage in [
        "UPDATE account_usage SET workspaces = 0, owned_disk_mib = 1",
        "UPDATE account_usage SET running_vcpu_count = -5",
        "DELETE FROM account_usage",
    ] {
        sqlx::query(damage).execute(&mut db).await.unwrap();
        assert_eq!(open(&database).await.usage(owner.account.id).await.unwrap(), expected);
        assert_eq!(usage::recount(&mut db).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_new_key_seals_anew_what_older_keys_sealed() {
    let (store, directory) = empty().await;
    let database = directory.path().join("store.db");
    let owner = owner(&store, 1).await;
    let mut made = Vec::new();
    for number in 1..=3 {
        made.push(insert(&store, &workspace(&owner, number)).await);
    }
    drop(store);
    let file = database.with_extension("key");
    let old = std::fs::read_to_string(&file).unwrap();
    let new = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE\n";
    std::fs::write(&file, format!("{old}{new}")).unwrap();
    drop(open(&database).await);
    // The older key is needed no more.
    std::fs::write(&file, new).unwrap();
    let store = open(&database).await;
    for record in made {
        assert_eq!(store.workspace(record.id).await.unwrap(), Some(record));
    }
}

#[tokio::test]
async fn what_vaults_keep_stands_nowhere_in_the_file_and_opens_with_a_new_key() {
    const VALUE: &str = "the value of a credential that is nobody's business";
    let (store, directory) = empty().await;
    let database = directory.path().join("store.db");
    let owner = owner(&store, 1).await;
    let vault = Vault {
        id: VaultId::from_u128(1),
        account_id: owner.account.id,
        name: "keys".to_owned(),
        description: None,
        created_at: owner.account.created_at,
    };
    store.insert_vault(&vault, 1).await.unwrap();
    let credential = VaultCredential {
        id: VaultCredentialId::from_u128(1),
        vault_id: vault.id,
        name: "KEY".to_owned(),
        kind: "api_key".to_owned(),
        description: None,
        created_at: vault.created_at,
        rotated_at: None,
    };
    let value = Secret::new(VALUE);
    store.insert_vault_credential(&credential, &value, 1).await.unwrap();
    let authority = VaultAuthority { certificate: "certificate".to_owned(), key: value.clone() };
    store.keep_vault_authority(owner.account.id, &authority).await.unwrap();
    drop(store);
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes()));
    }
    let file = database.with_extension("key");
    let old = std::fs::read_to_string(&file).unwrap();
    let new = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE\n";
    std::fs::write(&file, format!("{old}{new}")).unwrap();
    drop(open(&database).await);
    std::fs::write(&file, new).unwrap();
    let store = open(&database).await;
    let values = store.credential_values(&[vault.id]).await.unwrap();
    assert!(matches!(&values[..], [one] if one.value == value));
    assert_eq!(store.vault_authority(owner.account.id).await.unwrap(), Some(authority));
}

#[tokio::test]
async fn a_database_is_not_opened_with_another_databases_keys() {
    let (store, directory) = empty().await;
    let database = directory.path().join("store.db");
    let owner = owner(&store, 1).await;
    let record = insert(&store, &workspace(&owner, 1)).await;
    drop(store);
    let file = database.with_extension("key");
    let right = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let other = KeyRing::open(&file, Arc::new(SeededRng::new(99))).unwrap();
    let error = Store::open(&database, other).await.err().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("put the file back") && cause.contains("store.key"), "{cause}");
    std::fs::write(&file, right).unwrap();
    assert_eq!(open(&database).await.workspace(record.id).await.unwrap(), Some(record));
}

/// A database as the first version of the server left it, with one workspace that runs and has a time
/// to live, and one that is stopped.
async fn first_version(database: &Path) {
    let options = SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let mut db = options.connect().await.unwrap();
    let mut migrator: Migrator = sqlx::migrate!("./migrations");
    migrator.migrations = Cow::Owned(vec![migrator.migrations[0].clone()]);
    migrator.run(&mut db).await.unwrap();
    sqlx::raw_sql(include_str!("first_version.sql")).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

#[tokio::test]
async fn a_database_of_the_first_version_is_taken_over_and_its_secrets_sealed() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("store.db");
    first_version(&database).await;
    assert!(holds(&bytes(&database), "postgres://app:hunter2@db/app"));
    let store = open(&database).await;
    let account: AccountId = "0a1a7b2e-6a36-4cf7-9d5b-1f6c2a3b4c5d".parse().unwrap();
    let page = store.list_workspaces(account, &ListWorkspaces::default()).await.unwrap();
    insta::assert_json_snapshot!(
        "workspaces_of_the_first_version",
        page.items.iter().map(summary).collect::<Vec<_>>()
    );
    let usage = store.usage(account).await.unwrap();
    assert_eq!(usage, use_by_records(&store, account).await);
    assert_eq!(usage.workspaces, 2);
    assert_eq!(store.next_due().await.unwrap(), page.items[1].expires_at);
    assert!(!holds(&bytes(&database), "hunter2") && !holds(&bytes(&database), "firsttoken"));
    // Nothing is left to do the next time.
    drop(store);
    let again = open(&database).await;
    let second = again.list_workspaces(account, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(second, page);
}

fn summary(workspace: &Workspace) -> serde_json::Value {
    serde_json::json!({
        "id": workspace.id.to_string(),
        "namespace": workspace.namespace,
        "name": workspace.name.as_str(),
        "slug": workspace.slug.as_str(),
        "spec": workspace.spec,
        "desired": workspace.desired.as_str(),
        "state": workspace.state,
        "incarnation": workspace.incarnation,
        "expires_at": workspace.expires_at,
        "lifecycle": workspace.lifecycle,
        "preview_token": workspace.preview_token.expose(),
        "created_at": workspace.created_at,
        "revision": workspace.revision,
    })
}

#[tokio::test]
async fn an_upgrade_that_did_not_finish_is_done_anew() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("store.db");
    first_version(&database).await;
    // A row that cannot be read stops it, and nothing is changed or lost.
    let mut db = beside(&database).await;
    sqlx::query("UPDATE workspaces SET state_json = '{' WHERE slug = 'second'")
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    assert!(Store::open(&database, keys(&database)).await.is_err());
    let mut db = beside(&database).await;
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM plain_workspaces")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(waiting, 2);
    sqlx::query(
        "UPDATE plain_workspaces SET state_json = '{\"state\":\"stopped\"}' WHERE slug = 'second'",
    )
    .execute(&mut db)
    .await
    .unwrap();
    db.close().await.unwrap();
    let account: AccountId = "0a1a7b2e-6a36-4cf7-9d5b-1f6c2a3b4c5d".parse().unwrap();
    assert_eq!(open(&database).await.usage(account).await.unwrap().workspaces, 2);
}

/// What is asked often finds what it asks for by an index, whatever the size of the table.
#[tokio::test]
async fn frequent_queries_use_their_indexes() {
    let (_store, directory) = empty().await;
    let mut db = beside(&directory.path().join("store.db")).await;
    let cases = [
        (
            "SELECT id FROM workspaces WHERE id IN (SELECT value FROM json_each('[]')) \
             OR slug IN (SELECT value FROM json_each('[]'))",
            "MULTI-INDEX OR",
        ),
        ("SELECT min(due_at) FROM workspaces WHERE due_at IS NOT NULL", "workspaces_due"),
        ("SELECT id FROM workspaces WHERE due_at <= 1 ORDER BY due_at LIMIT 1", "workspaces_due"),
        (
            "SELECT count(*) FROM workspaces WHERE account_id = 'a' AND state IN ('running')",
            "COVERING INDEX workspaces_listing",
        ),
        (
            "SELECT name FROM workspaces WHERE seq IN (SELECT seq FROM workspaces \
             WHERE account_id = 'a' AND namespace = 'n' AND lifetime = 'permanent' \
             ORDER BY seq DESC LIMIT 1 OFFSET 1) ORDER BY seq DESC",
            "COVERING INDEX workspaces_listing",
        ),
        ("SELECT id FROM workspaces WHERE needed_snapshot_id = 's'", "workspaces_by_needed"),
        (
            "SELECT id FROM snapshots WHERE purpose = 'fork' AND state IN ('ready', 'failed') \
             AND NOT EXISTS (SELECT 1 FROM workspaces WHERE needed_snapshot_id = snapshots.id) \
             ORDER BY seq LIMIT 1",
            "snapshots_of_forks",
        ),
    ];
    for (query, index) in cases {
        let rows =
            sqlx::query(&format!("EXPLAIN QUERY PLAN {query}")).fetch_all(&mut db).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        assert!(plan.iter().any(|step| step.contains(index)), "{query}: {plan:#?}");
        assert!(
            plan.iter().all(|step| !step.starts_with("SCAN workspaces") || step.contains("USING")),
            "{query}: {plan:#?}"
        );
    }
}
