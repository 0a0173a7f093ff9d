-- Passwords that open one workspace by SSH, as one login of its guest. They go with the workspace.
CREATE TABLE ssh_passwords (
    -- Another one for each password: whoever came in by it is known by it from then on.
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    login TEXT NOT NULL,
    -- Its Argon2id hash as a PHC string, sealed.
    sealed BLOB NOT NULL,
    -- 1 when its owner has chosen it, 0 when it was made here.
    is_chosen INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (workspace_id, login)
) STRICT;

-- Workspaces that nobody enters by SSH, whatever they show.
CREATE TABLE ssh_closed (
    workspace_id TEXT PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE
) STRICT;
