-- +goose Up
-- A key belongs to one person within a tenant, and within the provider (''):
-- registering somebody's public key elsewhere must not keep them from using it.
CREATE TABLE person_keys_new (
    fingerprint TEXT NOT NULL, -- "SHA256:…"
    tenant      TEXT NOT NULL, -- the person's, '' for people of the provider
    person      TEXT NOT NULL REFERENCES people (name),
    public_key  TEXT NOT NULL, -- authorized_keys line
    created     INTEGER NOT NULL,
    PRIMARY KEY (fingerprint, tenant)
) STRICT;
INSERT INTO person_keys_new (fingerprint, tenant, person, public_key, created)
    SELECT k.fingerprint, p.tenant, k.person, k.public_key, k.created FROM person_keys k JOIN people p ON p.name = k.person;
DROP TABLE person_keys;
ALTER TABLE person_keys_new RENAME TO person_keys;
CREATE INDEX person_keys_person ON person_keys (person);

-- +goose Down
CREATE TABLE person_keys_old (
    fingerprint TEXT PRIMARY KEY, -- "SHA256:…"
    person      TEXT NOT NULL REFERENCES people (name),
    public_key  TEXT NOT NULL,    -- authorized_keys line
    created     INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO person_keys_old (fingerprint, person, public_key, created)
    SELECT fingerprint, person, public_key, created FROM person_keys ORDER BY created;
DROP TABLE person_keys;
ALTER TABLE person_keys_old RENAME TO person_keys;
CREATE INDEX person_keys_person ON person_keys (person);
