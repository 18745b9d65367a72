-- What had this content, was to be fetched again, and was given up.
CREATE INDEX recordings_by_failed_content ON recordings (sha256, account_sid, recording_sid)
    WHERE sha256 IS NOT NULL AND state = 'failed';
