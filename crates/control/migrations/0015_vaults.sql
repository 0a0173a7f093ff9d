-- Credentials that are used for guests and never shown to them, and for which hosts.
CREATE TABLE vaults (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX vaults_of_account ON vaults (account_id, seq);

CREATE TABLE vault_credentials (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    vault_id TEXT NOT NULL REFERENCES vaults (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    description TEXT,
    -- The value.
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    rotated_at INTEGER,
    UNIQUE (vault_id, name)
) STRICT;

CREATE TABLE vault_services (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    vault_id TEXT NOT NULL REFERENCES vaults (id) ON DELETE CASCADE,
    host TEXT NOT NULL,
    -- Names credentials, holds none; as JSON.
    auth_json TEXT NOT NULL,
    is_enabled INTEGER NOT NULL,
    description TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX vault_services_of_vault ON vault_services (vault_id, seq);

-- What guests of an account trust for the hosts of its vaults.
CREATE TABLE vault_authorities (
    account_id TEXT PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
    -- PEM.
    certificate TEXT NOT NULL,
    -- The key.
    sealed BLOB NOT NULL
) STRICT;

-- Requests that went out by a vault's services; the last of each vault are kept.
CREATE TABLE vault_requests (
    seq INTEGER PRIMARY KEY,
    vault_id TEXT NOT NULL REFERENCES vaults (id) ON DELETE CASCADE,
    workspace_id TEXT NOT NULL,
    at INTEGER NOT NULL,
    host TEXT NOT NULL,
    method TEXT NOT NULL,
    -- What was answered.
    status INTEGER NOT NULL,
    -- Names, as a JSON list.
    credentials_json TEXT NOT NULL
) STRICT;

CREATE INDEX vault_requests_of_vault ON vault_requests (vault_id, seq);
