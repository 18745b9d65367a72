-- What has no object at the moment, but had this content, and is to have it again.
CREATE INDEX recordings_by_awaited_content ON recordings (sha256, account_sid, recording_sid)
    WHERE sha256 IS NOT NULL AND state IN ('evicted', 'pending', 'fetching');
