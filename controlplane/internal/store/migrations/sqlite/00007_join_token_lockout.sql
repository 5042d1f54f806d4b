-- +goose Up
ALTER TABLE join_tokens ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;     -- wrong secrets since the last lock-out
ALTER TABLE join_tokens ADD COLUMN locked_until INTEGER NOT NULL DEFAULT 0; -- after too many of them
ALTER TABLE join_tokens ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;     -- recorded so far

-- +goose Down
ALTER TABLE join_tokens DROP COLUMN refusals;
ALTER TABLE join_tokens DROP COLUMN locked_until;
ALTER TABLE join_tokens DROP COLUMN failures;
