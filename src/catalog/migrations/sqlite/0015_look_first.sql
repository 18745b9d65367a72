-- 1 where an object of it was found in the bucket while it was on its way or given
-- up: the next claim looks there before it asks Twilio.
ALTER TABLE recordings ADD COLUMN look_first INTEGER NOT NULL DEFAULT 0;
