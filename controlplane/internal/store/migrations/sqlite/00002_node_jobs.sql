-- +goose Up
-- How the copy job stands on each node, as the node last reported it. An order
-- is completed when all its nodes are.
CREATE TABLE node_jobs (
    serial        TEXT NOT NULL,
    node          INTEGER NOT NULL,
    order_id      TEXT NOT NULL REFERENCES orders (id),
    state         TEXT NOT NULL,
    files_total   INTEGER NOT NULL,
    files_done    INTEGER NOT NULL,
    files_errored INTEGER NOT NULL,
    bytes_done    INTEGER NOT NULL,
    error_codes   TEXT NOT NULL, -- JSON list
    updated       INTEGER NOT NULL,
    PRIMARY KEY (serial, node),
    FOREIGN KEY (serial, node) REFERENCES nodes (serial, node)
) STRICT;
CREATE INDEX node_jobs_order ON node_jobs (order_id);

-- +goose Down
DROP TABLE node_jobs;
