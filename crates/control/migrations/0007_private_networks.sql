-- Under which address others see a workspace, as its node said last, and whether its network wish lets
-- any other workspace in: what has to be looked at to find whom a change concerns.
ALTER TABLE workspaces ADD COLUMN private_address TEXT;
ALTER TABLE workspaces ADD COLUMN admits_peers INTEGER NOT NULL DEFAULT 0;
CREATE INDEX workspaces_by_private_address
    ON workspaces (private_address) WHERE private_address IS NOT NULL;
CREATE INDEX workspaces_that_admit_peers ON workspaces (account_id) WHERE admits_peers = 1;
