-- The catalog's own clock, in milliseconds. Every statement reads it; no node's
-- clock is ever written.
CREATE VIEW clock AS SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms;

CREATE TABLE catalog (
    only_row    BIGINT PRIMARY KEY CHECK (only_row = 1),
    created_at  BIGINT NOT NULL
);
INSERT INTO catalog (only_row, created_at) SELECT 1, now_ms FROM clock;

CREATE TABLE recordings (
    account_sid        TEXT NOT NULL,
    recording_sid      TEXT NOT NULL,
    state              TEXT NOT NULL,
    announced_by       TEXT NOT NULL,
    -- Raised by every grant of a lease; an update under a lease names it.
    epoch              BIGINT NOT NULL DEFAULT 0,
    lease_node         TEXT,
    -- pending: the next attempt, 0 where someone waits for it; fetching: the end of the lease.
    due_at             BIGINT,
    -- Twilio's Retry-After: no attempt before it, whoever asks.
    not_before         BIGINT,
    pending_since      BIGINT,
    -- announced: when Twilio was last asked what became of it, at first accepted_at.
    asked_about_at     BIGINT,
    last_attempt_at    BIGINT,
    attempts           BIGINT NOT NULL DEFAULT 0,
    -- Attempts that failed since pending_since.
    failed_attempts    BIGINT NOT NULL DEFAULT 0,
    -- An open multipart upload, or what it became: .staging/<account>/<recording>.<epoch>
    upload_epoch       BIGINT,
    upload_id          TEXT,
    -- When the bucket is to be looked at again for what an attempt may have left there.
    recheck_due_at     BIGINT,
    -- The end of a lease other than that of a fetch; no claim is granted before it.
    duty_until         BIGINT,
    -- Nothing is staged by any attempt of a lower epoch.
    swept_epoch        BIGINT NOT NULL DEFAULT 0,

    call_sid           TEXT,
    conference_sid     TEXT,
    -- 1 once Twilio itself named the call.
    details_confirmed  BIGINT NOT NULL,
    source_host        TEXT,
    duration_seconds   BIGINT,
    channels           BIGINT,
    track              TEXT,
    recording_source   TEXT,
    recorded_at        BIGINT,

    sha256             BYTEA,
    size_bytes         BIGINT,
    format             TEXT,
    object_key         TEXT,

    accepted_at        BIGINT NOT NULL,
    -- recorded_at, else accepted_at.
    ordered_at         BIGINT NOT NULL,
    stored_at          BIGINT,
    last_asked_at      BIGINT,
    error_code         TEXT,
    error_detail       TEXT,
    error_at           BIGINT,
    hold               BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (account_sid, recording_sid)
);

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
    fetch_limit    BIGINT,
    -- Where Twilio said that there are too many.
    too_many       BIGINT,
    limit_set_at   BIGINT,
    -- Twilio's Retry-After: nothing is claimed before.
    quiet_until    BIGINT,
    -- Twilio refuses the credentials: nothing is claimed until a probe goes well.
    paused_at      BIGINT,
    probe_at       BIGINT,
    probes         BIGINT NOT NULL DEFAULT 0
);

-- What happened: the feed, and what only the history of a recording tells.
CREATE TABLE events (
    row_id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The place in the feed; NULL until it is numbered, and for what is history only.
    seq            BIGINT UNIQUE,
    in_feed        BIGINT NOT NULL,
    account_sid    TEXT NOT NULL,
    recording_sid  TEXT,
    at             BIGINT NOT NULL,
    type           TEXT NOT NULL,
    detail         TEXT,
    -- What makes a second telling of the same thing a repeat.
    told_once      TEXT
);

CREATE INDEX events_by_recording ON events (account_sid, recording_sid, row_id);
CREATE INDEX events_unnumbered ON events (row_id) WHERE in_feed = 1 AND seq IS NULL;
CREATE UNIQUE INDEX events_told_once ON events (account_sid, recording_sid, told_once) WHERE told_once IS NOT NULL;

-- Other SIDs under which people ask for a call's recordings.
CREATE TABLE aliases (
    account_sid  TEXT NOT NULL,
    alias_sid    TEXT NOT NULL,
    -- A call, or a conference where there is no call.
    target_sid   TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (account_sid, alias_sid, target_sid)
);
CREATE INDEX aliases_by_alias ON aliases (alias_sid);

-- The recording that was last PUT for a call.
CREATE TABLE choices (
    account_sid    TEXT NOT NULL,
    call_sid       TEXT NOT NULL,
    recording_sid  TEXT NOT NULL,
    put_at         BIGINT NOT NULL,
    PRIMARY KEY (account_sid, call_sid)
);
CREATE INDEX choices_by_call ON choices (call_sid);
CREATE INDEX choices_by_recording ON choices (account_sid, recording_sid);

-- Asking Twilio what callbacks did not tell, one row an account.
CREATE TABLE reconciles (
    account_sid    TEXT PRIMARY KEY,
    enrolled_at    BIGINT NOT NULL,
    -- Raised by every grant of a walk; what saves or ends one names it.
    epoch          BIGINT NOT NULL DEFAULT 0,
    -- The node that walks; NULL while none does.
    lease_node     TEXT,
    -- While a node walks: the end of its lease; else when the next one may.
    due_at         BIGINT NOT NULL,
    -- Twilio's Retry-After: no walk before it, whoever wants one.
    not_before     BIGINT,
    -- 1 while another walk is wanted as soon as this one is over.
    wanted         BIGINT NOT NULL DEFAULT 0,
    -- The walk under way: its beginning, how far back it looks, and Twilio's
    -- query for the page that is next; NULL is the first.
    begun_at       BIGINT,
    window_from    BIGINT,
    next_page      TEXT,
    -- Its pages that are done, and the recordings that it found; or the last one's.
    pages          BIGINT NOT NULL DEFAULT 0,
    found          BIGINT NOT NULL DEFAULT 0,
    failed_rounds  BIGINT NOT NULL DEFAULT 0,
    -- The last walk that came to its end: when it did, and when it had begun.
    completed_at   BIGINT,
    covered_until  BIGINT,
    -- Announced recordings: none is asked about before. A node is asking, or Twilio
    -- wants to be left alone.
    asking_from    BIGINT NOT NULL
);
CREATE INDEX reconciles_by_due ON reconciles (due_at);

-- Calls that Twilio is being asked for, and those that it knew nothing of.
CREATE TABLE questions (
    account_sid  TEXT NOT NULL,
    call_sid     TEXT NOT NULL,
    -- The call that Twilio names as its parent, once it was asked.
    parent_sid   TEXT,
    -- 1 while it is asked, 0 once the answer was "nothing".
    is_open      BIGINT NOT NULL,
    -- When the right to ask was granted last; names the grant.
    granted_at   BIGINT NOT NULL,
    -- The end of that right, or of the answer.
    until_at     BIGINT NOT NULL,
    -- How long the last "nothing" held; 0 where there was none.
    quiet_ms     BIGINT NOT NULL,
    -- The call first: a call that becomes known is looked for here and as a parent.
    PRIMARY KEY (call_sid, account_sid)
);
CREATE INDEX questions_by_parent ON questions (parent_sid, account_sid) WHERE parent_sid IS NOT NULL;
CREATE INDEX questions_by_end ON questions (until_at);

-- Numbers committed events, oldest first, and says how many. One statement for
-- the client: whoever calls it cannot be frozen between taking the lock and
-- letting it go. The lock orders the numbering over all nodes, so a lower number
-- is never seen after a higher one.
CREATE FUNCTION number_events(at_most bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    last_seq bigint;
    numbered bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('callvault events'), hashtext(current_schema()));
    -- Read after the lock was granted: each statement here has a snapshot of its own.
    SELECT coalesce(max(seq), 0) INTO last_seq FROM events;
    WITH unnumbered AS (
        SELECT row_id, row_number() OVER (ORDER BY row_id) AS place
        FROM (SELECT row_id FROM events WHERE in_feed = 1 AND seq IS NULL ORDER BY row_id LIMIT at_most) AS oldest
    )
    UPDATE events SET seq = last_seq + place FROM unnumbered WHERE events.row_id = unnumbered.row_id;
    GET DIAGNOSTICS numbered = ROW_COUNT;
    RETURN numbered;
END
$$;
