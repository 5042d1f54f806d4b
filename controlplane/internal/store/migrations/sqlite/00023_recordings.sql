-- +goose Up
-- What nodes recorded. The recordings themselves are files.
CREATE TABLE recordings (
    id       TEXT    PRIMARY KEY,
    kind     TEXT    NOT NULL, -- session | shares
    serial   TEXT    NOT NULL,
    node     INTEGER NOT NULL,
    tenant   TEXT    NOT NULL,
    order_id TEXT    NOT NULL,
    session  TEXT    NOT NULL,
    request  TEXT    NOT NULL,
    engineer TEXT    NOT NULL,
    ticket   TEXT    NOT NULL,
    began    INTEGER NOT NULL,
    ended    INTEGER NOT NULL, -- 0: not yet
    reason   TEXT    NOT NULL,
    size     INTEGER NOT NULL, -- bytes, once it has ended
    digest   TEXT    NOT NULL,
    node_key TEXT    NOT NULL,
    state    TEXT    NOT NULL, -- recording | complete | broken | deleted
    problem  TEXT    NOT NULL,
    logged   INTEGER NOT NULL,
    rev      INTEGER NOT NULL
) STRICT;
CREATE INDEX recordings_began ON recordings (tenant, began);
CREATE INDEX recordings_session ON recordings (session);
CREATE INDEX recordings_state ON recordings (state);

-- +goose Down
DROP TABLE recordings;
