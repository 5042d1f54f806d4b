-- +goose Up
-- A notice is what happened; a delivery is the word of it to one recipient, so that
-- each is tried, counted and shown by itself.
CREATE TABLE told_notices (
    id       TEXT PRIMARY KEY,
    kind     TEXT NOT NULL,
    tenant   TEXT NOT NULL, -- whose it is, '' if nobody's
    audience TEXT NOT NULL CHECK (audience IN ('customer', 'provider')),
    subject  TEXT NOT NULL, -- what it is about, e.g. a request id
    number   INTEGER NOT NULL, -- of the request it is about, 0 if of none
    state    TEXT NOT NULL, -- of the subject after it, '' if it has none
    title    TEXT NOT NULL,
    text     TEXT NOT NULL,
    html     TEXT NOT NULL,
    link     TEXT NOT NULL,
    created  INTEGER NOT NULL
) STRICT;

CREATE TABLE deliveries (
    id           TEXT PRIMARY KEY,
    notice       TEXT NOT NULL REFERENCES told_notices (id),
    channel      TEXT NOT NULL CHECK (channel IN ('mail', 'webhook')),
    recipient    TEXT NOT NULL, -- an address, or a webhook's id
    state        TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'dead')),
    attempts     INTEGER NOT NULL,
    next_attempt INTEGER NOT NULL,
    sent         INTEGER NOT NULL,
    last_error   TEXT NOT NULL,
    rev          INTEGER NOT NULL,
    UNIQUE (notice, channel, recipient)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (channel, recipient, next_attempt) WHERE state = 'waiting';
CREATE INDEX deliveries_dead ON deliveries (notice) WHERE state = 'dead';

INSERT INTO told_notices (id, kind, tenant, audience, subject, number, state, title, text, html, link, created)
    SELECT n.id, n.kind, COALESCE(r.tenant, ''), CASE WHEN n.kind = 'internal-approval' THEN 'provider' ELSE 'customer' END,
        n.subject, COALESCE(r.number, 0), '', n.title, n.body, '', '', n.created
    FROM notices n LEFT JOIN requests r ON r.id = n.subject;
INSERT INTO deliveries (id, notice, channel, recipient, state, attempts, next_attempt, sent, last_error, rev)
    SELECT DISTINCT n.id || '-' || e.value, n.id, 'mail', e.value, CASE n.delivered WHEN 0 THEN 'waiting' ELSE 'sent' END,
        n.attempts, n.next_attempt, n.delivered, n.last_error, 0
    FROM notices n, json_each(n.recipients) e;
DROP TABLE notices;
ALTER TABLE told_notices RENAME TO notices;
CREATE INDEX notices_subject ON notices (subject, created);

-- Where a tenant wants to hear of what happens.
CREATE TABLE webhooks (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenants (id),
    url        TEXT NOT NULL,
    secret     BLOB NOT NULL, -- encrypted
    created_by TEXT NOT NULL,
    created    INTEGER NOT NULL,
    removed    INTEGER NOT NULL,
    rev        INTEGER NOT NULL
) STRICT;
CREATE INDEX webhooks_tenant ON webhooks (tenant) WHERE removed = 0;

-- +goose Down
DROP TABLE webhooks;
CREATE TABLE old_notices (
    id           TEXT PRIMARY KEY,
    kind         TEXT NOT NULL,
    subject      TEXT NOT NULL, -- what it is about, e.g. a request id
    recipients   TEXT NOT NULL, -- JSON list
    title        TEXT NOT NULL,
    body         TEXT NOT NULL,
    created      INTEGER NOT NULL,
    next_attempt INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    delivered    INTEGER NOT NULL,
    last_error   TEXT NOT NULL,
    rev          INTEGER NOT NULL
) STRICT;
INSERT INTO old_notices (id, kind, subject, recipients, title, body, created, next_attempt, attempts, delivered, last_error, rev)
    SELECT n.id, n.kind, n.subject, json_group_array(d.recipient), n.title, n.text, n.created,
        MIN(d.next_attempt), MAX(d.attempts), CASE WHEN SUM(d.state = 'waiting') > 0 THEN 0 ELSE MAX(d.sent, 1) END, '', 0
    FROM notices n JOIN deliveries d ON d.notice = n.id WHERE d.channel = 'mail' GROUP BY n.id;
DROP TABLE deliveries;
DROP TABLE notices;
ALTER TABLE old_notices RENAME TO notices;
CREATE INDEX notices_due ON notices (next_attempt) WHERE delivered = 0;
