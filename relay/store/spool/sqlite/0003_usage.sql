-- What accounts have sent to the outside, see schema.sql.
CREATE TABLE usage (
    account    TEXT NOT NULL,
    node       TEXT NOT NULL,
    changed_us INTEGER NOT NULL,
    counts     TEXT NOT NULL,
    PRIMARY KEY (account, node)
) WITHOUT ROWID;
CREATE INDEX usage_changed ON usage (changed_us);
