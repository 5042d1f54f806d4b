-- +goose Up
-- Whose storage accounts are: the first tenant whose order names one owns it.
CREATE TABLE storage_accounts (
    account  TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    tenant   TEXT NOT NULL REFERENCES tenants (id),
    created  INTEGER NOT NULL,
    PRIMARY KEY (account, endpoint)
) STRICT;
INSERT OR IGNORE INTO storage_accounts (account, endpoint, tenant, created)
    SELECT json_extract(d.value, '$.account'), json_extract(d.value, '$.endpoint'), o.tenant, o.created
    FROM orders o, json_each(o.destinations) d
    ORDER BY o.created, o.id;

-- +goose Down
DROP TABLE storage_accounts;
