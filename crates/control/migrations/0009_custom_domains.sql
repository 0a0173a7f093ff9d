-- Names that people have brought, each for one published port. They go with the port, and so with its
-- workspace.
CREATE TABLE custom_domains (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    port_id TEXT NOT NULL REFERENCES published_ports (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- What the name's TXT record has to say.
    proof TEXT NOT NULL,
    proven_at INTEGER,
    -- Until when the certificate that is kept is good; NULL when there is none.
    certificate_not_after INTEGER,
    -- Attempts to get a certificate that failed, in a row.
    failures INTEGER NOT NULL,
    last_error TEXT,
    next_attempt_at INTEGER,
    created_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    UNIQUE (account_id, name)
) STRICT;

-- Many may claim a name; one has proven that it is theirs.
CREATE UNIQUE INDEX custom_domains_proven ON custom_domains (name) WHERE proven_at IS NOT NULL;
CREATE INDEX custom_domains_by_port ON custom_domains (port_id);
CREATE INDEX custom_domains_due ON custom_domains (next_attempt_at) WHERE next_attempt_at IS NOT NULL;

-- The certificates of these names; the private key is sealed.
CREATE TABLE domain_certificates (
    domain_id TEXT PRIMARY KEY REFERENCES custom_domains (id) ON DELETE CASCADE,
    chain TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT;

-- Who we are to an ACME server, by the URL of its directory; sealed, the key is in it.
CREATE TABLE acme_accounts (
    directory TEXT PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT;
