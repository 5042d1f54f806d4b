-- +goose Up
-- The key under which the keys of an order's disks are stored. It is wrapped by
-- a key service of ours or, for good, by the customer's key.
CREATE TABLE order_keys (
    order_id TEXT PRIMARY KEY REFERENCES orders (id),
    tenant   TEXT NOT NULL REFERENCES tenants (id),
    customer INTEGER NOT NULL CHECK (customer IN (0, 1)), -- the wrapping key is the customer's
    wrapper  TEXT NOT NULL,                               -- id of the wrapping key
    wrapped  BLOB NOT NULL,
    created  INTEGER NOT NULL,
    rev      INTEGER NOT NULL
) STRICT;
CREATE INDEX order_keys_wrapper ON order_keys (wrapper);

-- Orders of which replaced wrappings may still lie in the database's files. A
-- row goes once none does.
CREATE TABLE key_erasures (
    order_id TEXT PRIMARY KEY REFERENCES orders (id),
    since    INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE key_erasures;
DROP TABLE order_keys;
