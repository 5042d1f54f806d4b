-- +goose Up
-- A long recording has several parts, each a row and a file. Those that were there
-- have one.
ALTER TABLE recordings ADD COLUMN whole TEXT NOT NULL DEFAULT ''; -- id of the first part
ALTER TABLE recordings ADD COLUMN part INTEGER NOT NULL DEFAULT 1;
ALTER TABLE recordings ADD COLUMN before TEXT NOT NULL DEFAULT '';
ALTER TABLE recordings ADD COLUMN before_digest TEXT NOT NULL DEFAULT '';
ALTER TABLE recordings ADD COLUMN next TEXT NOT NULL DEFAULT '';
UPDATE recordings SET whole = id;

-- +goose Down
ALTER TABLE recordings DROP COLUMN whole;
ALTER TABLE recordings DROP COLUMN part;
ALTER TABLE recordings DROP COLUMN before;
ALTER TABLE recordings DROP COLUMN before_digest;
ALTER TABLE recordings DROP COLUMN next;
