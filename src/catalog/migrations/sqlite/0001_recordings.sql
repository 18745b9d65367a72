-- The catalog's own clock, in milliseconds. Every statement reads it; no node's
-- clock is ever written.
CREATE VIEW clock AS SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now_ms;

CREATE TABLE catalog (
    only_row    INTEGER PRIMARY KEY CHECK (only_row = 1),
    created_at  INTEGER NOT NULL
) STRICT;
INSERT INTO catalog (only_row, created_at) SELECT 1, now_ms FROM clock;

CREATE TABLE recordings (
    account_sid        TEXT NOT NULL,
    recording_sid      TEXT NOT NULL,
    state              TEXT NOT NULL,
    announced_by       TEXT NOT NULL,
    -- Raised by every grant of a lease; an update under a lease names it.
    epoch              INTEGER NOT NULL DEFAULT 0,
    lease_node         TEXT,
    -- pending: the next attempt, 0 where someone waits for it; fetching: the end of the lease.
    due_at             INTEGER,
    -- Twilio's Retry-After: no attempt before it, whoever asks.
    not_before         INTEGER,
    pending_since      INTEGER,
    -- announced: when Twilio was last asked what became of it, at first accepted_at.
    asked_about_at     INTEGER,
    last_attempt_at    INTEGER,
    attempts           INTEGER NOT NULL DEFAULT 0,
    -- Attempts that failed since pending_since.
    failed_attempts    INTEGER NOT NULL DEFAULT 0,
    -- An open multipart upload, or what it became: .staging/<account>/<recording>.<epoch>
    upload_epoch       INTEGER,
    upload_id          TEXT,
    -- When the bucket is to be looked at again for what an attempt may have left there.
    recheck_due_at     INTEGER,
    -- The end of a lease other than that of a fetch; no claim is granted before it.
    duty_until         INTEGER,
    -- Nothing is staged by any attempt of a lower epoch.
    swept_epoch        INTEGER NOT NULL DEFAULT 0,

    call_sid           TEXT,
    conference_sid     TEXT,
    -- 1 once Twilio itself named the call.
    details_confirmed  INTEGER NOT NULL,
    source_host        TEXT,
    duration_seconds   INTEGER,
    channels           INTEGER,
    track              TEXT,
    recording_source   TEXT,
    recorded_at        INTEGER,

    sha256             BLOB,
    size_bytes         INTEGER,
    format             TEXT,
    object_key         TEXT,

    accepted_at        INTEGER NOT NULL,
    -- recorded_at, else accepted_at.
    ordered_at         INTEGER NOT NULL,
    stored_at          INTEGER,
    last_asked_at      INTEGER,
    error_code         TEXT,
    error_detail       TEXT,
    error_at           INTEGER,
    hold               INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account_sid, recording_sid)
) STRICT, WITHOUT ROWID;

-- Each begins with what look-ups compare for equality, the account last: without
-- statistics SQLite takes the index of which it can use the most.
CREATE INDEX recordings_by_due ON recordings (account_sid, due_at) WHERE state IN ('pending', 'fetching');
CREATE INDEX recordings_by_recheck ON recordings (account_sid, recheck_due_at) WHERE recheck_due_at IS NOT NULL;
CREATE INDEX recordings_by_asked_about ON recordings (account_sid, asked_about_at) WHERE state = 'announced';
CREATE INDEX recordings_by_recording ON recordings (recording_sid);
CREATE INDEX recordings_by_call ON recordings (call_sid, account_sid);
CREATE INDEX recordings_by_conference ON recordings (conference_sid, account_sid);
CREATE INDEX recordings_by_order ON recordings (ordered_at, recording_sid, account_sid);
CREATE INDEX recordings_by_account ON recordings (account_sid, ordered_at, recording_sid);
CREATE INDEX recordings_by_state ON recordings (state, ordered_at, recording_sid, account_sid);
CREATE INDEX recordings_by_account_state ON recordings (account_sid, state, ordered_at, recording_sid);
CREATE INDEX recordings_under_way ON recordings (account_sid) WHERE state = 'fetching';

-- How an account fares at Twilio. One without a row here fares well.
CREATE TABLE accounts (
    account_sid    TEXT PRIMARY KEY,
    -- Fetches at once over all nodes; NULL: as many as the nodes like.
    fetch_limit    INTEGER,
    -- Where Twilio said that there are too many.
    too_many       INTEGER,
    limit_set_at   INTEGER,
    -- Twilio's Retry-After: nothing is claimed before.
    quiet_until    INTEGER,
    -- Twilio refuses the credentials: nothing is claimed until a probe goes well.
    paused_at      INTEGER,
    probe_at       INTEGER,
    probes         INTEGER NOT NULL DEFAULT 0
);

-- What happened: the feed, and what only the history of a recording tells.
CREATE TABLE events (
    row_id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The place in the feed; NULL for what is history only.
    seq            INTEGER UNIQUE,
    in_feed        INTEGER NOT NULL,
    account_sid    TEXT NOT NULL,
    recording_sid  TEXT,
    at             INTEGER NOT NULL,
    type           TEXT NOT NULL,
    detail         TEXT,
    -- What makes a second telling of the same thing a repeat.
    told_once      TEXT
) STRICT;

CREATE INDEX events_by_recording ON events (account_sid, recording_sid, row_id);
CREATE UNIQUE INDEX events_told_once ON events (account_sid, recording_sid, told_once) WHERE told_once IS NOT NULL;

-- Other SIDs under which people ask for a call's recordings.
CREATE TABLE aliases (
    account_sid  TEXT NOT NULL,
    alias_sid    TEXT NOT NULL,
    -- A call, or a conference where there is no call.
    target_sid   TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (account_sid, alias_sid, target_sid)
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_by_alias ON aliases (alias_sid);

-- The recording that was last PUT for a call.
CREATE TABLE choices (
    account_sid    TEXT NOT NULL,
    call_sid       TEXT NOT NULL,
    recording_sid  TEXT NOT NULL,
    put_at         INTEGER NOT NULL,
    PRIMARY KEY (account_sid, call_sid)
) STRICT, WITHOUT ROWID;
CREATE INDEX choices_by_call ON choices (call_sid);
CREATE INDEX choices_by_recording ON choices (account_sid, recording_sid);

-- Asking Twilio what callbacks did not tell, one row an account.
CREATE TABLE reconciles (
    account_sid    TEXT PRIMARY KEY,
    enrolled_at    INTEGER NOT NULL,
    -- Raised by every grant of a walk; what saves or ends one names it.
    epoch          INTEGER NOT NULL DEFAULT 0,
    -- The node that walks; NULL while none does.
    lease_node     TEXT,
    -- While a node walks: the end of its lease; else when the next one may.
    due_at         INTEGER NOT NULL,
    -- Twilio's Retry-After: no walk before it, whoever wants one.
    not_before     INTEGER,
    -- 1 while another walk is wanted as soon as this one is over.
    wanted         INTEGER NOT NULL DEFAULT 0,
    -- The walk under way: its beginning, how far back it looks, and Twilio's
    -- query for the page that is next; NULL is the first.
    begun_at       INTEGER,
    window_from    INTEGER,
    next_page      TEXT,
    -- Its pages that are done, and the recordings that it found; or the last one's.
    pages          INTEGER NOT NULL DEFAULT 0,
    found          INTEGER NOT NULL DEFAULT 0,
    failed_rounds  INTEGER NOT NULL DEFAULT 0,
    -- The last walk that came to its end: when it did, and when it had begun.
    completed_at   INTEGER,
    covered_until  INTEGER,
    -- Announced recordings: none is asked about before. A node is asking, or Twilio
    -- wants to be left alone.
    asking_from    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX reconciles_by_due ON reconciles (due_at);

-- Calls that Twilio is being asked for, and those that it knew nothing of.
CREATE TABLE questions (
    account_sid  TEXT NOT NULL,
    call_sid     TEXT NOT NULL,
    -- The call that Twilio names as its parent, once it was asked.
    parent_sid   TEXT,
    -- 1 while it is asked, 0 once the answer was "nothing".
    is_open      INTEGER NOT NULL,
    -- When the right to ask was granted last; names the grant.
    granted_at   INTEGER NOT NULL,
    -- The end of that right, or of the answer.
    until_at     INTEGER NOT NULL,
    -- How long the last "nothing" held; 0 where there was none.
    quiet_ms     INTEGER NOT NULL,
    -- The call first: a call that becomes known is looked for here and as a parent.
    PRIMARY KEY (call_sid, account_sid)
) STRICT, WITHOUT ROWID;
CREATE INDEX questions_by_parent ON questions (parent_sid, account_sid) WHERE parent_sid IS NOT NULL;
CREATE INDEX questions_by_end ON questions (until_at);
