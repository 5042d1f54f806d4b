-- +goose Up
-- What lets the copy job of an order into a storage account, encrypted under the
-- key of the order. It goes when the order is completed.
CREATE TABLE destination_access (
    order_id TEXT    NOT NULL REFERENCES orders (id),
    account  TEXT    NOT NULL,
    endpoint TEXT    NOT NULL,
    tenant   TEXT    NOT NULL REFERENCES tenants (id),
    kind     TEXT    NOT NULL CHECK (kind IN ('SharedAccessSignature', 'AccountKey')),
    detail   TEXT    NOT NULL, -- what it allows, for people
    expires  INTEGER NOT NULL, -- 0: it does not
    person   TEXT    NOT NULL, -- who handed it over
    created  INTEGER NOT NULL,
    wrapped  BLOB    NOT NULL,
    rev      INTEGER NOT NULL,
    PRIMARY KEY (order_id, account)
) STRICT;

-- +goose Down
DROP TABLE destination_access;
