-- Times are nanoseconds since 1970, UTC. Identifiers are UUIDs as hyphenated text.

CREATE TABLE accounts (
    id TEXT NOT NULL PRIMARY KEY,
    handle TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    -- SHA-256 of the secret. The secret itself is never stored.
    secret_hash BLOB NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    secret_tail TEXT NOT NULL,
    -- Whether configuration brought it; there is at most one such key in an account.
    is_bootstrap INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER
) STRICT;
CREATE INDEX api_keys_of_account ON api_keys (account_id, seq);
CREATE UNIQUE INDEX one_bootstrap_key ON api_keys (account_id) WHERE is_bootstrap = 1;

CREATE TABLE projects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    description TEXT,
    is_default INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (account_id, name)
) STRICT;
CREATE UNIQUE INDEX one_default_project ON projects (account_id) WHERE is_default = 1;

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
    preview_token TEXT NOT NULL,
    -- The whole specification and the state with its data, as JSON.
    spec_json TEXT NOT NULL,
    state_json TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT;
CREATE INDEX workspaces_of_account ON workspaces (account_id, seq);
CREATE INDEX workspaces_by_name ON workspaces (account_id, name);
CREATE INDEX workspaces_by_expiry ON workspaces (expires_at) WHERE expires_at IS NOT NULL;
