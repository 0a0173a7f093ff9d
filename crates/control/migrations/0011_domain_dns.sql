-- By whose interface records for a name's certificate are put in place; NULL when the server shows the
-- name to be its own in the way that it is configured with.
ALTER TABLE custom_domains ADD COLUMN dns_provider TEXT;

-- What that provider asks for, sealed.
CREATE TABLE domain_dns_access (
    domain_id TEXT PRIMARY KEY REFERENCES custom_domains (id) ON DELETE CASCADE,
    sealed BLOB NOT NULL
) STRICT;
