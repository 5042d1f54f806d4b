-- +goose Up
-- A pruned record is empty; its hash stays in audit_hashes.
ALTER TABLE audit_records ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
CREATE INDEX audit_records_time ON audit_records (time, idx);

-- What must not be pruned: the records that match all of tenant, serial and
-- correlation that are not ''.
CREATE TABLE legal_holds (
    id          TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL,
    serial      TEXT NOT NULL,
    correlation TEXT NOT NULL,
    reason      TEXT NOT NULL,
    placed_by   TEXT NOT NULL,
    placed      INTEGER NOT NULL,
    released_by TEXT NOT NULL,
    released    INTEGER NOT NULL,
    rev         INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE legal_holds;
DROP INDEX audit_records_time;
ALTER TABLE audit_records DROP COLUMN pruned;
