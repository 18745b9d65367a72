-- Requests to Twilio other than fetches, of accounts whose pace is limited: each
-- takes a place that a fetch would have.
CREATE TABLE turns (
    turn_id      INTEGER PRIMARY KEY AUTOINCREMENT,
    account_sid  TEXT NOT NULL,
    -- 1 once it may be sent; 0 while it waits.
    is_granted   INTEGER NOT NULL,
    -- 1 where it goes before fetches: while it waits, one fetch fewer is begun.
    is_urgent    INTEGER NOT NULL,
    -- Whoever had it is not there any more.
    until_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX turns_by_account ON turns (account_sid, until_at);
