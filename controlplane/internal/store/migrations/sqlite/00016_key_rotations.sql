-- +goose Up
-- Rotations of the service's own wrapping key. One is under way at a time.
CREATE TABLE key_rotations (
    id       INTEGER PRIMARY KEY,
    target   TEXT NOT NULL, -- id of the key that wraps from then on
    person   TEXT NOT NULL, -- who asked for it
    total    INTEGER NOT NULL, -- orders to wrap again
    done     INTEGER NOT NULL,
    problem  TEXT NOT NULL, -- what it waits for, '' if nothing
    started  INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    rev      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX key_rotations_open ON key_rotations (finished) WHERE finished = 0;

-- +goose Down
DROP TABLE key_rotations;
