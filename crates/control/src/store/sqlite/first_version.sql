-- Rows as version 0.1.0 wrote them.
INSERT INTO accounts (id, handle, created_at)
VALUES ('0a1a7b2e-6a36-4cf7-9d5b-1f6c2a3b4c5d', 'admin', 1767225600000000000);
INSERT INTO projects (id, account_id, name, description, is_default, created_at, updated_at)
VALUES ('5b0c6a52-32a5-4d0a-8a3d-64c1d5a3d1f7', '0a1a7b2e-6a36-4cf7-9d5b-1f6c2a3b4c5d', 'default',
    NULL, 1, 1767225600000000000, 1767225600000000000);
INSERT INTO workspaces (id, account_id, project_id, namespace, name, slug, lifetime, vcpu_count,
    memory_mib, disk_mib, desired, state, runs, incarnation, replace_through, failed_starts,
    start_began_at, node_id, expires_at, preview_token, spec_json, state_json, created_at,
    updated_at, revision)
VALUES ('7d9f0c44-3f0e-4c55-9a0e-3c1f1a7b9e21', '0a1a7b2e-6a36-4cf7-9d5b-1f6c2a3b4c5d',
    '5b0c6a52-32a5-4d0a-8a3d-64c1d5a3d1f7', 'team-a', 'First one', 'first', 'temporary', 2, 512,
    1024, 'running', 'running', 1, 3, 2, 0, 1767225601000000000,
    '5eed0000-0000-4000-8000-000000000001', 1767229202123456789,
    'firsttokenfirsttokenfirsttokenfi',
    '{"image":"base","image_digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","shape":{"vcpu_count":2,"memory_mib":512,"disk_mib":1024,"cpu_kind":"performance"},"env":[{"key":"DATABASE_URL","value":"postgres://app:hunter2@db/app"},{"key":"EMPTY","value":""}],"lifetime":"temporary","expiry":{"after_seconds":3600,"action":"delete"},"keep_active":false,"log_retention":"this_start","metadata":{"team":{"size":3}}}',
    '{"state":"running","since":"2026-01-01T00:00:02.123456789Z"}',
    1767225600500000000, 1767225602123456789, 3);
INSERT INTO workspaces (id, account_id, project_id, namespace, name, slug, lifetime, vcpu_count,
    memory_mib, disk_mib, desired, state, runs, incarnation, replace_through, failed_starts,
    start_began_at, node_id, expires_at, preview_token, spec_json, state_json, created_at,
    updated_at, revision)
VALUES ('11111111-2222-4333-8444-555555555555', '0a1a7b2e-6a36-4cf7-9d5b-1f6c2a3b4c5d',
    '5b0c6a52-32a5-4d0a-8a3d-64c1d5a3d1f7', NULL, 'second', 'second', 'permanent', 1, 256, 64,
    'stopped', 'stopped', 0, 1, 0, 0, 1767225700000000000, NULL, NULL,
    'secondtokensecondtokensecondtoke',
    '{"image":"node-20","image_digest":"sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","shape":{"vcpu_count":1,"memory_mib":256,"disk_mib":64,"cpu_kind":"shared"},"env":[],"lifetime":"permanent","expiry":null,"keep_active":true,"log_retention":"across_starts","metadata":{}}',
    '{"state":"stopped"}', 1767225650000000000, 1767225800000000000, 5);
