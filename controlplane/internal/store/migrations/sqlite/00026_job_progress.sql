-- +goose Up
-- How far a node's copy job is, in bytes, and how fast it goes.
ALTER TABLE node_jobs ADD COLUMN bytes_total INTEGER NOT NULL DEFAULT 0;
ALTER TABLE node_jobs ADD COLUMN bytes_per_second INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE node_jobs DROP COLUMN bytes_per_second;
ALTER TABLE node_jobs DROP COLUMN bytes_total;
