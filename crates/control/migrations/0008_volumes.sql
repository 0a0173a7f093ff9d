-- File systems that outlive workspaces.
CREATE TABLE volumes (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    size_mib INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_json TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    UNIQUE (account_id, name)
) STRICT;

-- Which workspace has which volume. A row is made before its workspace is, so that no workspace is ever
-- without what it was made with; it goes with the workspace, in the same transaction.
CREATE TABLE volume_attachments (
    workspace_id TEXT NOT NULL,
    volume_id TEXT NOT NULL REFERENCES volumes (id),
    slot INTEGER NOT NULL,
    path TEXT NOT NULL,
    mode TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, slot),
    UNIQUE (volume_id, workspace_id)
) STRICT;

CREATE TRIGGER volume_attachments_of_removed_workspaces AFTER DELETE ON workspaces BEGIN
    DELETE FROM volume_attachments WHERE workspace_id = OLD.id;
END;
