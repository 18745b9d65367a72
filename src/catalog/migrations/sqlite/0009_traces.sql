-- What has waited longest, for an alert.
CREATE INDEX recordings_by_pending ON recordings (account_sid, pending_since)
    WHERE state IN ('pending', 'fetching') AND pending_since IS NOT NULL;
-- The trace in which it was accepted (W3C traceparent): the fetch goes on in it, on any node.
ALTER TABLE recordings ADD COLUMN traceparent TEXT;
