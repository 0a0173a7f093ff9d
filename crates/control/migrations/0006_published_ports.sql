-- Ports of workspaces that have an address of their own outside. They go with their workspace.
CREATE TABLE published_ports (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    port INTEGER NOT NULL,
    -- The label of its host: unique in the whole installation.
    slug TEXT NOT NULL UNIQUE,
    label TEXT,
    -- SHA-256 of the token that opens it; NULL when everybody may come.
    token_hash BLOB,
    created_at INTEGER NOT NULL,
    UNIQUE (workspace_id, port)
) STRICT;
