-- +goose Up
-- How the person of each certificate had signed in: renewing one does not make it
-- another sign-in, and logging out ends all of one.
ALTER TABLE person_certs ADD COLUMN sign_in TEXT NOT NULL DEFAULT '';      -- the same for all certificates of one sign-in
ALTER TABLE person_certs ADD COLUMN method TEXT NOT NULL DEFAULT '';       -- login-token, or oidc: and the provider's id
ALTER TABLE person_certs ADD COLUMN isolated INTEGER NOT NULL DEFAULT 0;   -- by an identity of this control plane alone
ALTER TABLE person_certs ADD COLUMN mfa INTEGER NOT NULL DEFAULT 0;        -- with a second factor
ALTER TABLE person_certs ADD COLUMN signed_in INTEGER NOT NULL DEFAULT 0;
ALTER TABLE person_certs ADD COLUMN ends INTEGER NOT NULL DEFAULT 0;       -- when the sign-in is over, 0: with the certificate that is not renewed
UPDATE person_certs SET sign_in = cert_serial, method = 'login-token', isolated = 1;
CREATE INDEX person_certs_sign_in ON person_certs (sign_in);

-- Whom an identity provider knows a person as: an address that is given to
-- somebody else there does not make them this person here.
CREATE TABLE person_subjects (
    person  TEXT PRIMARY KEY REFERENCES people (name),
    issuer  TEXT NOT NULL,
    subject TEXT NOT NULL,
    created INTEGER NOT NULL,
    UNIQUE (issuer, subject)
) STRICT;

-- ID tokens that were exchanged, until they expire.
CREATE TABLE spent_id_tokens (
    digest  TEXT PRIMARY KEY,
    expires INTEGER NOT NULL
) STRICT;
CREATE INDEX spent_id_tokens_expires ON spent_id_tokens (expires);

-- +goose Down
DROP TABLE spent_id_tokens;
DROP TABLE person_subjects;
DROP INDEX person_certs_sign_in;
ALTER TABLE person_certs DROP COLUMN ends;
ALTER TABLE person_certs DROP COLUMN signed_in;
ALTER TABLE person_certs DROP COLUMN mfa;
ALTER TABLE person_certs DROP COLUMN isolated;
ALTER TABLE person_certs DROP COLUMN method;
ALTER TABLE person_certs DROP COLUMN sign_in;
