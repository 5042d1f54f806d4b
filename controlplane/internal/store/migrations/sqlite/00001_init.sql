-- +goose Up
-- Times are Unix milliseconds, zero for "not yet". Rows with a rev are changed
-- by compare-and-set on it.

CREATE TABLE tenants (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL,
    lockbox_enabled INTEGER NOT NULL CHECK (lockbox_enabled IN (0, 1)),
    without_lockbox TEXT NOT NULL CHECK (without_lockbox IN ('deny', 'provider-approval')),
    created         INTEGER NOT NULL,
    rev             INTEGER NOT NULL
) STRICT;

CREATE TABLE subscriptions (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    support_plan TEXT NOT NULL,
    notify       TEXT NOT NULL, -- JSON list
    created      INTEGER NOT NULL,
    rev          INTEGER NOT NULL
) STRICT;
CREATE INDEX subscriptions_tenant ON subscriptions (tenant);

-- Names are never used again: a removed person stays as a row.
CREATE TABLE people (
    name    TEXT PRIMARY KEY,
    role    TEXT NOT NULL,
    tenant  TEXT NOT NULL, -- '' for people of the provider
    created INTEGER NOT NULL,
    removed INTEGER NOT NULL,
    rev     INTEGER NOT NULL
) STRICT;
CREATE INDEX people_tenant ON people (tenant, role);

CREATE TABLE person_keys (
    fingerprint TEXT PRIMARY KEY, -- "SHA256:…"
    person      TEXT NOT NULL REFERENCES people (name),
    public_key  TEXT NOT NULL,    -- authorized_keys line
    created     INTEGER NOT NULL
) STRICT;
CREATE INDEX person_keys_person ON person_keys (person);

CREATE TABLE login_tokens (
    id           TEXT PRIMARY KEY,
    person       TEXT NOT NULL REFERENCES people (name),
    secret_hash  BLOB NOT NULL,
    created      INTEGER NOT NULL,
    expires      INTEGER NOT NULL,
    used         INTEGER NOT NULL,
    failures     INTEGER NOT NULL,
    locked_until INTEGER NOT NULL,
    rev          INTEGER NOT NULL
) STRICT;
CREATE INDEX login_tokens_person ON login_tokens (person);

CREATE TABLE orders (
    id                   TEXT PRIMARY KEY,
    subscription         TEXT NOT NULL REFERENCES subscriptions (id),
    tenant               TEXT NOT NULL REFERENCES tenants (id),
    sku                  TEXT NOT NULL,
    stage                TEXT NOT NULL,
    status               TEXT NOT NULL,
    serial               TEXT NOT NULL, -- '' until a device is prepared
    destinations         TEXT NOT NULL, -- JSON list
    trust_policy_version INTEGER NOT NULL,
    trust_policy_digest  TEXT NOT NULL,
    consent              TEXT NOT NULL, -- id of the one in force
    consent_digest       TEXT NOT NULL,
    job_state            TEXT NOT NULL,
    error_codes          TEXT NOT NULL, -- JSON list
    files_total          INTEGER NOT NULL,
    files_done           INTEGER NOT NULL,
    files_errored        INTEGER NOT NULL,
    bytes_done           INTEGER NOT NULL,
    created              INTEGER NOT NULL,
    updated              INTEGER NOT NULL,
    rev                  INTEGER NOT NULL
) STRICT;
CREATE INDEX orders_tenant ON orders (tenant);
-- A device serves one order at a time; finished ones keep their serial.
CREATE UNIQUE INDEX orders_serial ON orders (serial)
    WHERE serial <> '' AND stage NOT IN ('Completed', 'CompletedWithErrors', 'CompletedWithWarnings', 'Cancelled', 'Aborted');

CREATE TABLE history (
    id      INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL, -- order | ticket | request
    subject TEXT NOT NULL,
    time    INTEGER NOT NULL,
    what    TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX history_subject ON history (kind, subject, id);

CREATE TABLE nodes (
    serial           TEXT NOT NULL,
    node             INTEGER NOT NULL,
    order_id         TEXT NOT NULL REFERENCES orders (id),
    key_fingerprint  TEXT NOT NULL, -- '' until enrolled
    spki             BLOB,
    cert_serial      TEXT NOT NULL,
    cert_expires     INTEGER NOT NULL,
    ssh_host_key     BLOB,
    enrolled         INTEGER NOT NULL,
    revoked          INTEGER NOT NULL,
    last_seen        INTEGER NOT NULL,
    status           BLOB, -- device.v1.NodeStatus as last reported
    log_size         INTEGER NOT NULL, -- of the last activity-log checkpoint the node saw
    chain_size       INTEGER NOT NULL, -- records of the node's own chain that were replayed
    chain_checkpoint BLOB,             -- its last signed checkpoint
    rev              INTEGER NOT NULL,
    PRIMARY KEY (serial, node)
) STRICT;
CREATE INDEX nodes_order ON nodes (order_id);
CREATE UNIQUE INDEX nodes_key ON nodes (key_fingerprint) WHERE key_fingerprint <> '';

-- Certificates ended before their time.
CREATE TABLE revoked_certs (
    cert_serial TEXT PRIMARY KEY,
    subject     TEXT NOT NULL,
    time        INTEGER NOT NULL
) STRICT;

CREATE TABLE disks (
    serial      TEXT NOT NULL,
    node        INTEGER NOT NULL,
    disk        TEXT NOT NULL,
    order_id    TEXT NOT NULL REFERENCES orders (id),
    volume_guid TEXT NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (serial, node, disk),
    FOREIGN KEY (serial, node) REFERENCES nodes (serial, node)
) STRICT;
CREATE INDEX disks_order ON disks (order_id);

CREATE TABLE disk_keys (
    serial   TEXT NOT NULL,
    node     INTEGER NOT NULL,
    disk     TEXT NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('external-key', 'recovery-password')),
    order_id TEXT NOT NULL REFERENCES orders (id),
    tenant   TEXT NOT NULL REFERENCES tenants (id),
    wrapper  TEXT NOT NULL,
    wrapped  BLOB NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (serial, node, disk, kind),
    FOREIGN KEY (serial, node, disk) REFERENCES disks (serial, node, disk)
) STRICT;
CREATE INDEX disk_keys_order ON disk_keys (order_id);

CREATE TABLE join_tokens (
    id          TEXT PRIMARY KEY,
    secret_hash BLOB NOT NULL,
    order_id    TEXT NOT NULL REFERENCES orders (id),
    serial      TEXT NOT NULL,
    node        INTEGER NOT NULL,
    replaces    INTEGER NOT NULL CHECK (replaces IN (0, 1)),
    created_by  TEXT NOT NULL,
    created     INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    used        INTEGER NOT NULL,
    rev         INTEGER NOT NULL
) STRICT;

CREATE TABLE trust_policies (
    order_id TEXT NOT NULL REFERENCES orders (id),
    version  INTEGER NOT NULL,
    digest   TEXT NOT NULL,
    payload  BLOB NOT NULL,
    envelope BLOB NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (order_id, version)
) STRICT;
CREATE UNIQUE INDEX trust_policies_digest ON trust_policies (order_id, digest);

CREATE TABLE consents (
    id         TEXT PRIMARY KEY,
    order_id   TEXT NOT NULL REFERENCES orders (id),
    digest     TEXT NOT NULL UNIQUE,
    payload    BLOB NOT NULL,
    envelope   BLOB, -- NULL while only a draft
    created    INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    signed     INTEGER NOT NULL,
    revoked    INTEGER NOT NULL,
    rev        INTEGER NOT NULL
) STRICT;
CREATE INDEX consents_order ON consents (order_id);

CREATE TABLE manifests (
    serial          TEXT NOT NULL,
    node            INTEGER NOT NULL,
    disk            TEXT NOT NULL,
    share           TEXT NOT NULL,
    version         INTEGER NOT NULL,
    order_id        TEXT NOT NULL REFERENCES orders (id),
    bom             BLOB NOT NULL,
    digest          TEXT NOT NULL,
    previous_digest TEXT NOT NULL,
    difference      TEXT NOT NULL,
    request         TEXT NOT NULL,
    time            INTEGER NOT NULL,
    PRIMARY KEY (serial, node, disk, share, version)
) STRICT;
CREATE INDEX manifests_order ON manifests (order_id);

CREATE TABLE copy_logs (
    id       INTEGER PRIMARY KEY,
    order_id TEXT NOT NULL REFERENCES orders (id),
    serial   TEXT NOT NULL,
    node     INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    xml      BLOB NOT NULL
) STRICT;
CREATE INDEX copy_logs_order ON copy_logs (order_id, node, id);

CREATE TABLE tickets (
    id           TEXT PRIMARY KEY,
    order_id     TEXT NOT NULL REFERENCES orders (id),
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    title        TEXT NOT NULL,
    origin       TEXT NOT NULL CHECK (origin IN ('customer', 'provider-detected')),
    owner        TEXT NOT NULL,
    escalated_to TEXT NOT NULL, -- JSON list
    created      INTEGER NOT NULL,
    rev          INTEGER NOT NULL
) STRICT;
CREATE INDEX tickets_order ON tickets (order_id);

CREATE TABLE sessions (
    id              TEXT PRIMARY KEY,
    serial          TEXT NOT NULL,
    node            INTEGER NOT NULL,
    order_id        TEXT NOT NULL REFERENCES orders (id),
    tenant          TEXT NOT NULL REFERENCES tenants (id),
    ticket          TEXT NOT NULL REFERENCES tickets (id),
    engineer        TEXT NOT NULL REFERENCES people (name),
    key_fingerprint TEXT NOT NULL,
    host_key        BLOB,
    state           TEXT NOT NULL,
    created         INTEGER NOT NULL,
    expires         INTEGER NOT NULL,
    ended           INTEGER NOT NULL,
    end_reason      TEXT NOT NULL,
    rev             INTEGER NOT NULL,
    FOREIGN KEY (serial, node) REFERENCES nodes (serial, node)
) STRICT;
CREATE INDEX sessions_serial ON sessions (serial, state);

CREATE TABLE requests (
    id                  TEXT PRIMARY KEY,
    number              INTEGER NOT NULL UNIQUE,
    action              TEXT NOT NULL,
    status              TEXT NOT NULL,
    tenant              TEXT NOT NULL REFERENCES tenants (id),
    subscription        TEXT NOT NULL REFERENCES subscriptions (id),
    order_id            TEXT NOT NULL REFERENCES orders (id),
    ticket              TEXT NOT NULL,
    serial              TEXT NOT NULL,
    disks               TEXT NOT NULL, -- JSON list
    engineer            TEXT NOT NULL REFERENCES people (name),
    engineer_key        TEXT NOT NULL,
    reason_code         TEXT NOT NULL,
    justification       TEXT NOT NULL,
    access              TEXT NOT NULL,
    purpose             TEXT NOT NULL,
    duration            INTEGER NOT NULL, -- milliseconds
    resource_id         TEXT NOT NULL,
    evaluation          BLOB, -- lockbox.v1.Evaluation
    statement           BLOB NOT NULL,
    statement_digest    TEXT NOT NULL UNIQUE,
    trust_policy_digest TEXT NOT NULL,
    notified            TEXT NOT NULL, -- JSON list
    created             INTEGER NOT NULL,
    expires             INTEGER NOT NULL,
    access_start        INTEGER NOT NULL,
    access_end          INTEGER NOT NULL,
    executed            INTEGER NOT NULL, -- first time
    closed              INTEGER NOT NULL,
    close_reason        TEXT NOT NULL,
    rev                 INTEGER NOT NULL
) STRICT;
CREATE INDEX requests_tenant ON requests (tenant, status);
CREATE INDEX requests_serial ON requests (serial, status);
CREATE INDEX requests_order ON requests (order_id);

CREATE TABLE decisions (
    id              INTEGER PRIMARY KEY,
    request         TEXT NOT NULL REFERENCES requests (id),
    role            TEXT NOT NULL, -- provider | customer
    person          TEXT NOT NULL,
    verdict         TEXT NOT NULL,
    reason          TEXT NOT NULL,
    key_fingerprint TEXT NOT NULL,
    max_duration    INTEGER NOT NULL, -- milliseconds, 0: as requested
    time            INTEGER NOT NULL,
    envelope        BLOB NOT NULL,
    UNIQUE (request, role, person)
) STRICT;

CREATE TABLE revocations (
    id             INTEGER PRIMARY KEY,
    subject_digest TEXT NOT NULL, -- of a statement or a consent
    subject        TEXT NOT NULL, -- request or consent id
    person         TEXT NOT NULL,
    reason         TEXT NOT NULL,
    time           INTEGER NOT NULL,
    envelope       BLOB -- NULL when nobody signed: that takes effect as well
) STRICT;
CREATE INDEX revocations_subject ON revocations (subject_digest);

CREATE TABLE unlock_attempts (
    id             TEXT PRIMARY KEY,
    order_id       TEXT NOT NULL REFERENCES orders (id),
    tenant         TEXT NOT NULL REFERENCES tenants (id),
    subject        TEXT NOT NULL, -- request or consent id
    subject_digest TEXT NOT NULL,
    purpose        TEXT NOT NULL,
    serial         TEXT NOT NULL,
    nodes          TEXT NOT NULL, -- JSON list of "<serial>/<n>"
    state          TEXT NOT NULL CHECK (state IN ('challenging', 'recorded', 'ordered', 'opened', 'committed', 'locking', 'failed')),
    error_code     TEXT NOT NULL,
    intent_index   INTEGER NOT NULL, -- of the intent record, -1 before
    lease_end      INTEGER NOT NULL,
    started        INTEGER NOT NULL,
    updated        INTEGER NOT NULL,
    rev            INTEGER NOT NULL
) STRICT;
-- One attempt at a time for each device.
CREATE UNIQUE INDEX unlock_attempts_open ON unlock_attempts (serial)
    WHERE state NOT IN ('committed', 'failed');

CREATE TABLE audit_records (
    idx         INTEGER PRIMARY KEY,
    time        INTEGER NOT NULL,
    operation   TEXT NOT NULL,
    correlation TEXT NOT NULL,
    caller      TEXT NOT NULL,
    serial      TEXT NOT NULL, -- of the device it is about, '' if of none
    tenant      TEXT NOT NULL, -- '' if of none
    record      BLOB NOT NULL
) STRICT;
CREATE INDEX audit_records_operation ON audit_records (operation, idx);
CREATE INDEX audit_records_correlation ON audit_records (correlation, idx);
CREATE INDEX audit_records_serial ON audit_records (serial, idx);
CREATE INDEX audit_records_tenant ON audit_records (tenant, idx);

CREATE TABLE audit_hashes (
    idx  INTEGER PRIMARY KEY,
    hash BLOB NOT NULL
) STRICT;

-- Hashes of the nodes' own chains, replayed.
CREATE TABLE chain_hashes (
    serial TEXT NOT NULL,
    node   INTEGER NOT NULL,
    idx    INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    PRIMARY KEY (serial, node, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE notices (
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
CREATE INDEX notices_due ON notices (next_attempt) WHERE delivered = 0;

CREATE TABLE timers (
    id      INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    due     INTEGER NOT NULL,
    done    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX timers_open ON timers (kind, subject) WHERE done = 0;
CREATE INDEX timers_due ON timers (due) WHERE done = 0;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE meta;
DROP TABLE timers;
DROP TABLE notices;
DROP TABLE chain_hashes;
DROP TABLE audit_hashes;
DROP TABLE audit_records;
DROP TABLE unlock_attempts;
DROP TABLE revocations;
DROP TABLE decisions;
DROP TABLE requests;
DROP TABLE sessions;
DROP TABLE tickets;
DROP TABLE copy_logs;
DROP TABLE manifests;
DROP TABLE consents;
DROP TABLE trust_policies;
DROP TABLE join_tokens;
DROP TABLE disk_keys;
DROP TABLE disks;
DROP TABLE revoked_certs;
DROP TABLE nodes;
DROP TABLE history;
DROP TABLE orders;
DROP TABLE login_tokens;
DROP TABLE person_keys;
DROP TABLE people;
DROP TABLE subscriptions;
DROP TABLE tenants;
