-- API keys: of the key itself only its SHA-256.
CREATE TABLE api_keys (
    key_id           TEXT PRIMARY KEY,
    key_hash         BLOB NOT NULL UNIQUE,
    name             TEXT,
    -- Words, with commas between them.
    scopes           TEXT NOT NULL,
    -- SIDs, with commas between them; NULL: all accounts.
    account_sids     TEXT,
    -- Requests a second that each node takes; 0: no limit.
    rate_per_second  INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    revoked_at       INTEGER
) STRICT;

-- What shares are signed with: by the newest.
CREATE TABLE share_secrets (
    secret_id    INTEGER PRIMARY KEY,
    secret       BLOB NOT NULL,
    created_at   INTEGER NOT NULL,
    -- It signs no more.
    retired_at   INTEGER,
    -- What it signed is over.
    ended_at     INTEGER
) STRICT;

-- Another number with each change of the two above: nodes read them when it is.
CREATE TABLE key_changes (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    revision   INTEGER NOT NULL
) STRICT;
INSERT INTO key_changes (only_row, revision) SELECT 1, now_ms FROM clock;
