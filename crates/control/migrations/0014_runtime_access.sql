-- Workspaces whose inside is reached by tokens of their own. Goes with the workspace.
CREATE TABLE runtime_access (
    workspace_id TEXT PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE
) STRICT;

-- Those tokens. They end with the access, with their time, or when all of them are replaced.
CREATE TABLE runtime_tokens (
    -- In the order they were made.
    seq INTEGER PRIMARY KEY,
    -- SHA-256 of the token.
    hash BLOB NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES runtime_access (workspace_id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE INDEX runtime_tokens_of_workspace ON runtime_tokens (workspace_id, seq);
