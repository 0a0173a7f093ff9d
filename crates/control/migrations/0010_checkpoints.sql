-- Frozen states of volumes. They go with their volume.
CREATE TABLE volume_checkpoints (
    id TEXT PRIMARY KEY,
    volume_id TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    state_json TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT;

CREATE INDEX volume_checkpoints_of_volume ON volume_checkpoints (volume_id, created_at);

-- Which checkpoint a workspace reads; null: the volume as it is.
ALTER TABLE volume_attachments ADD COLUMN checkpoint_id TEXT REFERENCES volume_checkpoints (id);
