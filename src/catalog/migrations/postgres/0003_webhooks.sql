-- Other names of a call, found by the call: an event wakes who asks for any of them.
CREATE INDEX aliases_by_target ON aliases (account_sid, target_sid);

-- Those that events are posted to.
CREATE TABLE receivers (
    receiver_id    TEXT PRIMARY KEY,
    -- Raised by every grant of a lease; whatever is done for the receiver names it.
    epoch          BIGINT NOT NULL DEFAULT 0,
    lease_node     TEXT,
    -- The end of the lease of the node that posts; no other does before it.
    lease_until    BIGINT NOT NULL DEFAULT 0,
    -- Up to here the feed was looked through for what is to be posted.
    after_seq      BIGINT NOT NULL,
    enrolled_at    BIGINT NOT NULL,
    -- Nobody answers there: nothing is posted before.
    resting_until  BIGINT NOT NULL DEFAULT 0,
    -- Attempts in a row that met nobody.
    unanswered     BIGINT NOT NULL DEFAULT 0,
    -- When it said that it wants no more (410).
    disabled_at    BIGINT
);

-- What is, or was, to be posted to a receiver: one row an event.
CREATE TABLE deliveries (
    receiver_id      TEXT NOT NULL,
    seq              BIGINT NOT NULL,
    -- pending, delivered, failed
    state            TEXT NOT NULL,
    -- Since when it is tried.
    since            BIGINT NOT NULL,
    -- pending: when it is to be posted next.
    due_at           BIGINT NOT NULL,
    attempts         BIGINT NOT NULL DEFAULT 0,
    -- Attempts that failed since it is tried.
    failed_attempts  BIGINT NOT NULL DEFAULT 0,
    last_attempt_at  BIGINT,
    -- What the receiver answered last; NULL where it did not.
    last_status      BIGINT,
    last_error       TEXT,
    -- When it was taken or given up.
    ended_at         BIGINT,
    PRIMARY KEY (receiver_id, seq)
);
CREATE INDEX deliveries_by_due ON deliveries (receiver_id, due_at, seq) WHERE state = 'pending';
CREATE INDEX deliveries_by_waiting ON deliveries (receiver_id, since) WHERE state = 'pending';
CREATE INDEX deliveries_by_state ON deliveries (receiver_id, state, seq);
CREATE INDEX deliveries_by_age ON deliveries (since);
