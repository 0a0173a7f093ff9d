-- What a workspace keeps secret is sealed from now on, which SQL cannot do: the rows there are wait in
-- `plain_workspaces` until the server has sealed them, and the table is gone after that.

DROP INDEX workspaces_of_account;
DROP INDEX workspaces_by_name;
DROP INDEX workspaces_by_expiry;
ALTER TABLE workspaces RENAME TO plain_workspaces;

CREATE TABLE workspaces (
    -- Order of creation: lists are newest first, also when two were made in the same instant.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    project_id TEXT NOT NULL REFERENCES projects (id),
    namespace TEXT,
    name TEXT NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    lifetime TEXT NOT NULL,
    vcpu_count INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk_mib INTEGER NOT NULL,
    desired TEXT NOT NULL,
    state TEXT NOT NULL,
    -- Whether its size counts against the running pool.
    runs INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    replace_through INTEGER NOT NULL,
    failed_starts INTEGER NOT NULL,
    start_began_at INTEGER,
    node_id TEXT,
    expires_at INTEGER,
    last_active_at INTEGER,
    -- When the next of its timers rings: time to live, idleness, restart, saved memory.
    due_at INTEGER,
    -- The snapshot its next start cannot do without.
    needed_snapshot_id TEXT,
    -- The specification without its secrets, the state with its data, and what the rules of its life
    -- remember, as JSON.
    spec_json TEXT NOT NULL,
    state_json TEXT NOT NULL,
    lifecycle_json TEXT NOT NULL,
    -- The environment and the preview token: see `store/sealing.rs` for the form.
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT;
-- Everything a list is filtered by, so that counting and skipping touch no row.
CREATE INDEX workspaces_listing
    ON workspaces (account_id, seq, project_id, namespace, lifetime, state);
CREATE INDEX workspaces_by_name ON workspaces (account_id, name);
CREATE INDEX workspaces_due ON workspaces (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX workspaces_by_needed_snapshot
    ON workspaces (needed_snapshot_id) WHERE needed_snapshot_id IS NOT NULL;

CREATE TABLE snapshots (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    -- Of which workspace it was taken. That workspace may be gone.
    workspace_id TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    contents TEXT NOT NULL,
    state TEXT NOT NULL,
    image TEXT NOT NULL,
    image_digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    blackout_nanos INTEGER,
    taken_at INTEGER,
    shape_json TEXT NOT NULL,
    state_json TEXT NOT NULL,
    metadata_json TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshots_listing
    ON snapshots (account_id, seq, workspace_id, purpose, state);
CREATE INDEX snapshots_of_forks ON snapshots (seq) WHERE purpose = 'fork';

-- What an account uses, changed in the transaction that changes it: admitting a workspace does not
-- add up all the others.
CREATE TABLE account_usage (
    account_id TEXT NOT NULL PRIMARY KEY REFERENCES accounts (id),
    workspaces INTEGER NOT NULL,
    owned_vcpu_count INTEGER NOT NULL,
    owned_memory_mib INTEGER NOT NULL,
    owned_disk_mib INTEGER NOT NULL,
    running_vcpu_count INTEGER NOT NULL,
    running_memory_mib INTEGER NOT NULL,
    running_disk_mib INTEGER NOT NULL,
    -- Those of forks are not counted, their bytes are.
    snapshots INTEGER NOT NULL,
    snapshot_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
