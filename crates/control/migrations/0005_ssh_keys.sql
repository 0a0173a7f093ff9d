-- Public keys that open a shell in the account's workspaces. A key belongs to one account: whoever
-- presents it is that account, and nobody else's workspace of the same name can be meant.
CREATE TABLE ssh_keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    -- As in a `.pub` file, without its comment.
    public_key TEXT NOT NULL,
    -- SHA-256 of the key's wire form.
    fingerprint BLOB NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
);

CREATE INDEX ssh_keys_of_account ON ssh_keys (account_id, seq);
