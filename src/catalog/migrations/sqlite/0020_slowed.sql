-- When Twilio last asked for less: what began before has been heard, however often the pace
-- was raised since.
ALTER TABLE accounts ADD COLUMN slowed_at INTEGER;
