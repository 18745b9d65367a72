-- Letting go: what is erased, held, evicted, and deleted at Twilio.

-- Of an erased recording: when the rest of its erasing is to be gone on with;
-- NULL once nothing is owed.
ALTER TABLE recordings ADD COLUMN erase_due_at BIGINT;
-- 1 once its marker is in the bucket.
ALTER TABLE recordings ADD COLUMN erase_marked BIGINT NOT NULL DEFAULT 0;
-- 1 once nothing of it is in the bucket but the marker.
ALTER TABLE recordings ADD COLUMN erase_cleared BIGINT NOT NULL DEFAULT 0;
-- Twilio's copy: 0 it was not asked for, 1 it is owed, 2 it is gone.
ALTER TABLE recordings ADD COLUMN erase_twilio BIGINT NOT NULL DEFAULT 0;
-- Tries that did not bring it to an end.
ALTER TABLE recordings ADD COLUMN erase_failures BIGINT NOT NULL DEFAULT 0;

-- When the marker of a hold is to be brought in line with the row; NULL where it is.
ALTER TABLE recordings ADD COLUMN hold_marker_due_at BIGINT;
-- The end of the lease under which that is done.
ALTER TABLE recordings ADD COLUMN hold_marker_until BIGINT;
-- Raised by every grant of that lease.
ALTER TABLE recordings ADD COLUMN hold_marker_epoch BIGINT NOT NULL DEFAULT 0;

-- It could not be let go of: it is left alone as if it had come then.
ALTER TABLE recordings ADD COLUMN kept_at BIGINT;
-- Twilio's copy is to be deleted; from then on it is not evicted.
ALTER TABLE recordings ADD COLUMN twilio_marked_at BIGINT;
ALTER TABLE recordings ADD COLUMN twilio_deleted_at BIGINT;

CREATE INDEX recordings_by_erase ON recordings (account_sid, erase_due_at) WHERE erase_due_at IS NOT NULL;
CREATE INDEX recordings_by_hold_marker ON recordings (hold_marker_due_at) WHERE hold_marker_due_at IS NOT NULL;
CREATE INDEX recordings_by_age ON recordings (account_sid, ordered_at) WHERE state <> 'erased' AND hold = 0;
-- Of what is stored: since when nobody has asked for it.
CREATE INDEX recordings_by_idle ON recordings (account_sid, (CASE
    WHEN coalesce(last_asked_at, 0) >= stored_at AND coalesce(last_asked_at, 0) >= coalesce(kept_at, 0) THEN last_asked_at
    WHEN coalesce(kept_at, 0) >= stored_at THEN kept_at ELSE stored_at END))
    WHERE state = 'stored' AND hold = 0 AND twilio_marked_at IS NULL;
-- Of what is stored, and is still at Twilio: since when; what callbacks and
-- applications announced, and what was found by asking.
CREATE INDEX recordings_by_announced_copy ON recordings (account_sid, (CASE
    WHEN coalesce(kept_at, 0) >= stored_at THEN kept_at ELSE stored_at END))
    WHERE state = 'stored' AND hold = 0 AND twilio_deleted_at IS NULL AND announced_by IN ('callback', 'put');
CREATE INDEX recordings_by_found_copy ON recordings (account_sid, (CASE
    WHEN coalesce(kept_at, 0) >= stored_at THEN kept_at ELSE stored_at END))
    WHERE state = 'stored' AND hold = 0 AND twilio_deleted_at IS NULL AND announced_by NOT IN ('callback', 'put');
