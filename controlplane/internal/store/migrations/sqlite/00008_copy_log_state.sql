-- +goose Up
-- One copy log for each node and state of its job: a node that reports without end
-- replaces its own.
ALTER TABLE copy_logs ADD COLUMN state TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE copy_logs DROP COLUMN state;
