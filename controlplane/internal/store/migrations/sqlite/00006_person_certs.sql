-- +goose Up
-- Every certificate issued to a person: a new login token ends all of them, also
-- those that somebody stole and renewed.
CREATE TABLE person_certs (
    cert_serial TEXT PRIMARY KEY,
    person      TEXT NOT NULL REFERENCES people (name)
) STRICT;
CREATE INDEX person_certs_person ON person_certs (person);

-- +goose Down
DROP TABLE person_certs;
