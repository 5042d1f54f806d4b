-- +goose Up
-- The groups of internal approvers that JIT policies name. Those who were there
-- before are in the one that new ones get.
ALTER TABLE people ADD COLUMN member_of TEXT NOT NULL DEFAULT '[]';            -- JSON list
ALTER TABLE request_approvers ADD COLUMN member_of TEXT NOT NULL DEFAULT '[]'; -- when the request was made
UPDATE people SET member_of = '["Customer support lead"]' WHERE role = 'internal-approver';
UPDATE request_approvers SET member_of = '["Customer support lead"]' WHERE role = 'internal-approver';

-- Every set of JIT policies that was in force, with its texts, the newest last.
CREATE TABLE jit_policies (
    id     INTEGER PRIMARY KEY,
    digest TEXT    NOT NULL,
    files  TEXT    NOT NULL, -- JSON
    since  INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE jit_policies;
ALTER TABLE request_approvers DROP COLUMN member_of;
ALTER TABLE people DROP COLUMN member_of;
