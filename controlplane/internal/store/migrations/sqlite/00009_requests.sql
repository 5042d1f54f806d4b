-- +goose Up
ALTER TABLE tenants ADD COLUMN request_expiry INTEGER NOT NULL DEFAULT 0; -- milliseconds; 0: the default
ALTER TABLE tenants ADD COLUMN access_time INTEGER NOT NULL DEFAULT 0;    -- milliseconds; 0: the default
ALTER TABLE requests ADD COLUMN shares TEXT NOT NULL DEFAULT '[]';           -- JSON list; empty: all
ALTER TABLE requests ADD COLUMN extends TEXT NOT NULL DEFAULT '';            -- id of the request whose access this one goes on with
ALTER TABLE requests ADD COLUMN raised_again TEXT NOT NULL DEFAULT '';       -- id of the request of which this one is a repetition
ALTER TABLE requests ADD COLUMN lock_confirmed INTEGER NOT NULL DEFAULT 0;   -- when all nodes had confirmed that they are locked
ALTER TABLE requests ADD COLUMN locks_by INTEGER NOT NULL DEFAULT 0;         -- when a node that could not be reached locks by itself
CREATE INDEX requests_status ON requests (status, number);
CREATE INDEX requests_engineer ON requests (engineer, number);
CREATE INDEX requests_ticket ON requests (ticket, number);

-- +goose Down
DROP INDEX requests_ticket;
DROP INDEX requests_engineer;
DROP INDEX requests_status;
ALTER TABLE requests DROP COLUMN locks_by;
ALTER TABLE requests DROP COLUMN lock_confirmed;
ALTER TABLE requests DROP COLUMN raised_again;
ALTER TABLE requests DROP COLUMN extends;
ALTER TABLE requests DROP COLUMN shares;
ALTER TABLE tenants DROP COLUMN access_time;
ALTER TABLE tenants DROP COLUMN request_expiry;
