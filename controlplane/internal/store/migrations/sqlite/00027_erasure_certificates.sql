-- +goose Up
-- What nodes signed of their disks' erasure at the end of an order.
CREATE TABLE erasure_certificates (
    order_id        TEXT    NOT NULL REFERENCES orders (id),
    node            INTEGER NOT NULL,
    key_fingerprint TEXT    NOT NULL, -- of the node's key when it was verified
    digest          TEXT    NOT NULL, -- sha256:<hex> of the payload
    envelope        BLOB    NOT NULL,
    time            INTEGER NOT NULL,
    PRIMARY KEY (order_id, node)
) STRICT;

-- +goose Down
DROP TABLE erasure_certificates;
