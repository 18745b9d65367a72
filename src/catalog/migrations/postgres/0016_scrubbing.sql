-- How many recordings there are, as was last counted for a walk; NULL: never.
ALTER TABLE bucket_walks ADD COLUMN expected BIGINT;
-- Somebody saw other bytes than the row names: the next recheck reads them back.
ALTER TABLE recordings ADD COLUMN doubted_at BIGINT;
