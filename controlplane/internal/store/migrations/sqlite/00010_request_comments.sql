-- +goose Up
-- What was said about a request before it was decided.
CREATE TABLE request_comments (
    request  TEXT NOT NULL REFERENCES requests (id),
    number   INTEGER NOT NULL, -- within the request, from 1
    reply_to INTEGER NOT NULL, -- number of the comment it answers, 0 if none
    person   TEXT NOT NULL,
    side     TEXT NOT NULL CHECK (side IN ('provider', 'customer')),
    question INTEGER NOT NULL CHECK (question IN (0, 1)),
    text     TEXT NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (request, number)
) STRICT;

-- +goose Down
DROP TABLE request_comments;
