-- Parts of workspaces-to-be that an account keeps: services, setup scripts and templates.
CREATE TABLE blueprints (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    -- 'service', 'setup' or 'template'.
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    -- What it says, as JSON, sealed: commands, variables and scripts may hold secrets.
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    UNIQUE (account_id, kind, name)
) STRICT;
