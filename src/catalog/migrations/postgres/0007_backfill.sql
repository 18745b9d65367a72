-- 1 for what a backfill brought: it is fetched when nothing else is due.
ALTER TABLE recordings ADD COLUMN is_backfill BIGINT NOT NULL DEFAULT 0;
CREATE INDEX recordings_by_turn ON recordings (account_sid, is_backfill, due_at) WHERE state IN ('pending', 'fetching');

-- The backfill of an account that was begun last.
CREATE TABLE backfills (
    account_sid   TEXT PRIMARY KEY,
    -- Names it; another one has another number.
    run           BIGINT NOT NULL,
    -- What was asked for: a day, or nothing.
    since_day     TEXT,
    until_day     TEXT,
    begun_at      BIGINT NOT NULL,
    completed_at  BIGINT
);

-- How far it came with each day.
CREATE TABLE backfill_days (
    account_sid   TEXT NOT NULL,
    day           TEXT NOT NULL,
    run           BIGINT NOT NULL,
    -- Raised by every grant; whatever changes the walk names it.
    epoch         BIGINT NOT NULL,
    -- The end of the lease; NULL while nobody walks.
    leased_until  BIGINT,
    -- Twilio's query for the page that is next; NULL is the first.
    next_page     TEXT,
    -- Of this pass over the day: its pages that are done, what was new on them, and
    -- the entries that could not be read.
    pages         BIGINT NOT NULL DEFAULT 0,
    news          BIGINT NOT NULL DEFAULT 0,
    unreadable    BIGINT NOT NULL DEFAULT 0,
    passes        BIGINT NOT NULL DEFAULT 0,
    walked_at     BIGINT,
    PRIMARY KEY (account_sid, day)
);

-- What Twilio's list has, each once.
CREATE TABLE backfill_finds (
    account_sid    TEXT NOT NULL,
    day            TEXT NOT NULL,
    recording_sid  TEXT NOT NULL,
    run            BIGINT NOT NULL,
    -- 'new', 'known', or 'deleted': gone at Twilio, and never known here.
    what           TEXT NOT NULL,
    PRIMARY KEY (account_sid, day, recording_sid)
);
