-- +goose Up
-- What customers decide before anybody asks. The signed bytes say all of it.
CREATE TABLE standing_consents (
    id       TEXT PRIMARY KEY,
    order_id TEXT NOT NULL REFERENCES orders (id),
    digest   TEXT NOT NULL UNIQUE,
    envelope BLOB NOT NULL,
    person   TEXT NOT NULL, -- who completed it
    created  INTEGER NOT NULL,
    expires  INTEGER NOT NULL,
    revoked  INTEGER NOT NULL,
    rev      INTEGER NOT NULL
) STRICT;
CREATE INDEX standing_consents_order ON standing_consents (order_id, created);

-- +goose Down
DROP TABLE standing_consents;
