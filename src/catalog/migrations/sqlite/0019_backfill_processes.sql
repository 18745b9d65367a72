-- Who is at work on the backfill of an account that was begun last, and until when
-- that is certain: no other one is begun meanwhile.
CREATE TABLE backfill_processes (
    account_sid  TEXT NOT NULL,
    -- Counts the processes of the run.
    process      INTEGER NOT NULL,
    run          INTEGER NOT NULL,
    alive_until  INTEGER NOT NULL,
    PRIMARY KEY (account_sid, process)
) STRICT, WITHOUT ROWID;
