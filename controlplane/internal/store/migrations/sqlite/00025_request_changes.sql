-- +goose Up
-- What a node said was touched under a request: envelopes that it signed, in parts.
CREATE TABLE request_changes (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    request  TEXT    NOT NULL REFERENCES requests (id),
    node     INTEGER NOT NULL,
    begun    INTEGER NOT NULL, -- which opening it is of
    stage    TEXT    NOT NULL, -- relock | reopened
    part     INTEGER NOT NULL,
    digest   TEXT    NOT NULL, -- sha256:<hex> of the payload
    envelope BLOB    NOT NULL,
    time     INTEGER NOT NULL,
    UNIQUE (request, node, begun, stage, part)
) STRICT;

-- +goose Down
DROP TABLE request_changes;
