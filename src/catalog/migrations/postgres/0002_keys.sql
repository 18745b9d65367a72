-- API keys: of the key itself only its SHA-256.
CREATE TABLE api_keys (
    key_id           TEXT PRIMARY KEY,
    key_hash         BYTEA NOT NULL UNIQUE,
    name             TEXT,
    -- Words, with commas between them.
    scopes           TEXT NOT NULL,
    -- SIDs, with commas between them; NULL: all accounts.
    account_sids     TEXT,
    -- Requests a second that each node takes; 0: no limit.
    rate_per_second  BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    revoked_at       BIGINT
);

-- What shares are signed with: by the newest.
CREATE TABLE share_secrets (
    secret_id    BIGINT PRIMARY KEY,
    secret       BYTEA NOT NULL,
    created_at   BIGINT NOT NULL,
    -- It signs no more.
    retired_at   BIGINT,
    -- What it signed is over.
    ended_at     BIGINT
);

-- Another number with each change of the two above: nodes read them when it is.
CREATE TABLE key_changes (
    only_row   BIGINT PRIMARY KEY CHECK (only_row = 1),
    revision   BIGINT NOT NULL
);
INSERT INTO key_changes (only_row, revision) SELECT 1, now_ms FROM clock;
