-- +goose Up
-- Who might decide about a request when it was made. Who comes later may not.
CREATE TABLE request_approvers (
    request TEXT NOT NULL REFERENCES requests (id),
    person  TEXT NOT NULL,
    role    TEXT NOT NULL,
    PRIMARY KEY (request, person)
) STRICT, WITHOUT ROWID;
INSERT INTO request_approvers (request, person, role)
    SELECT r.id, p.name, p.role FROM requests r JOIN people p ON p.created <= r.created AND p.removed = 0
        AND (p.tenant = r.tenant AND p.role IN ('owner', 'approver') OR p.role = 'internal-approver')
    WHERE r.closed = 0;

-- Documents that some of the customers have signed and others have still to:
-- trust policies, consents, standing consents.
CREATE TABLE pending_documents (
    digest   TEXT PRIMARY KEY,
    order_id TEXT NOT NULL REFERENCES orders (id),
    kind     TEXT NOT NULL, -- payload type
    envelope BLOB NOT NULL, -- with the signatures so far
    person   TEXT NOT NULL, -- who signed first
    created  INTEGER NOT NULL,
    rev      INTEGER NOT NULL
) STRICT;
CREATE INDEX pending_documents_order ON pending_documents (order_id, created);

-- The newest trust policy that each node is to have, and how handing it over went.
CREATE TABLE policy_deliveries (
    serial       TEXT NOT NULL,
    node         INTEGER NOT NULL,
    order_id     TEXT NOT NULL REFERENCES orders (id),
    digest       TEXT NOT NULL,
    attempts     INTEGER NOT NULL,
    next_attempt INTEGER NOT NULL,
    delivered    INTEGER NOT NULL, -- 0 until the node has it
    last_error   TEXT NOT NULL,
    PRIMARY KEY (serial, node),
    FOREIGN KEY (serial, node) REFERENCES nodes (serial, node)
) STRICT;
CREATE INDEX policy_deliveries_open ON policy_deliveries (next_attempt) WHERE delivered = 0;

-- +goose Down
DROP TABLE policy_deliveries;
DROP TABLE pending_documents;
DROP TABLE request_approvers;
