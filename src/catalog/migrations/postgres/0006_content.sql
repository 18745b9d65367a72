-- Which recordings have those bytes: the same first one for everyone who may see the same.
CREATE INDEX recordings_by_content ON recordings (sha256, account_sid, recording_sid) WHERE state = 'stored';
