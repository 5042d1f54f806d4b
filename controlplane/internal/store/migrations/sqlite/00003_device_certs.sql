-- +goose Up
-- Every certificate issued to a node: revoking the node ends all of them, also
-- those that it replaced before they expired.
CREATE TABLE device_certs (
    cert_serial TEXT PRIMARY KEY,
    serial      TEXT NOT NULL,
    node        INTEGER NOT NULL,
    FOREIGN KEY (serial, node) REFERENCES nodes (serial, node)
) STRICT;
CREATE INDEX device_certs_node ON device_certs (serial, node);

-- +goose Down
DROP TABLE device_certs;
