-- What has waited longest, of what came by itself and of what a backfill brought.
CREATE INDEX recordings_by_waiting ON recordings (account_sid, is_backfill, pending_since)
    WHERE state IN ('pending', 'fetching') AND pending_since IS NOT NULL;
-- Since when the rest of an erasing, or the marker of a hold, is owed, once a try did
-- not bring it to an end; until then it has been due since it is owed.
ALTER TABLE recordings ADD COLUMN erase_owed_since BIGINT;
ALTER TABLE recordings ADD COLUMN hold_marker_owed_since BIGINT;
