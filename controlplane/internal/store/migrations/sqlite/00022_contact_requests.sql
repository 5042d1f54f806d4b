-- +goose Up
CREATE TABLE contact_requests (
    id         TEXT    PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenants (id),
    order_id   TEXT    NOT NULL, -- empty: the whole tenant
    requester  TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    state      TEXT    NOT NULL, -- asked | approved | denied
    created    INTEGER NOT NULL,
    expires    INTEGER NOT NULL, -- of what state says
    decided_by TEXT    NOT NULL,
    decided    INTEGER NOT NULL,
    last_read  INTEGER NOT NULL,
    rev        INTEGER NOT NULL
) STRICT;
CREATE INDEX contact_requests_created ON contact_requests (created);

-- +goose Down
DROP TABLE contact_requests;
