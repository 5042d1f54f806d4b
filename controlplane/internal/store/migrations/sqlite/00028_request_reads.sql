-- +goose Up
-- What an engineer read under a request for access to a subscription, and when that
-- was last written to the activity log.
CREATE TABLE request_reads (
    request   TEXT    NOT NULL REFERENCES requests (id),
    resource  TEXT    NOT NULL,
    operation TEXT    NOT NULL,
    time      INTEGER NOT NULL,
    PRIMARY KEY (request, resource, operation)
) STRICT;

-- +goose Down
DROP TABLE request_reads;
