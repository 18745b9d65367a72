-- A new catalog knows nothing of what lies in the bucket. unread: the markers
-- were not read yet, and nothing is taken before; unindexed: the objects were
-- not. A catalog that has recordings already is neither.
ALTER TABLE catalog ADD COLUMN unread INTEGER NOT NULL DEFAULT 0;
ALTER TABLE catalog ADD COLUMN unindexed INTEGER NOT NULL DEFAULT 0;
UPDATE catalog SET unread = 1, unindexed = 1 WHERE NOT EXISTS (SELECT 1 FROM recordings);

-- What goes over the whole bucket, a row each: reading the markers, reindexing,
-- scrubbing, and the daily look at what is staged.
CREATE TABLE bucket_walks (
    name           TEXT PRIMARY KEY,
    -- Raised by every grant; what saves or ends a part names it.
    epoch          INTEGER NOT NULL DEFAULT 0,
    -- The node that walks; NULL while none does.
    lease_node     TEXT,
    -- While a node walks: the end of its lease; else when the next part may begin.
    due_at         INTEGER NOT NULL DEFAULT 0,
    -- The walk under way: its beginning, its stage, and the place behind which it
    -- goes on; NULL is the beginning of the stage.
    begun_at       INTEGER,
    stage          INTEGER NOT NULL DEFAULT 0,
    position       TEXT,
    -- What it has gone over in this stage.
    done           INTEGER NOT NULL DEFAULT 0,
    -- When the last whole one had begun.
    covered_until  INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO bucket_walks (name) VALUES ('markers'), ('objects'), ('scrub');
-- What is staged is at first looked at after a day.
INSERT INTO bucket_walks (name, due_at) SELECT 'staging', now_ms + 86400000 FROM clock;

-- Holds that the bucket tells of recordings without a row: a row that is made
-- later is held from the start.
CREATE TABLE marked_holds (
    account_sid    TEXT NOT NULL,
    recording_sid  TEXT NOT NULL,
    PRIMARY KEY (account_sid, recording_sid)
) STRICT, WITHOUT ROWID;

-- What a reindex has found and not made rows of yet: of each recording the
-- newest object.
CREATE TABLE found_objects (
    account_sid       TEXT NOT NULL,
    recording_sid     TEXT NOT NULL,
    object_key        TEXT NOT NULL,
    -- 1 where the recording has other objects as well.
    others            INTEGER NOT NULL DEFAULT 0,
    call_sid          TEXT,
    conference_sid    TEXT,
    duration_seconds  INTEGER,
    channels          INTEGER,
    recorded_at       INTEGER,
    sha256            BLOB NOT NULL,
    size_bytes        INTEGER NOT NULL,
    format            TEXT NOT NULL,
    stored_at         INTEGER NOT NULL,
    source_host       TEXT,
    PRIMARY KEY (account_sid, recording_sid)
) STRICT, WITHOUT ROWID;
CREATE INDEX found_objects_by_time ON found_objects (stored_at, recording_sid, account_sid);
