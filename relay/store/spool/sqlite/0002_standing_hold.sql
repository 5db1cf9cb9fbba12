ALTER TABLE recipient RENAME COLUMN owed TO owed_report;
-- Domains of recipients for which new mail is held, see schema.sql.
CREATE TABLE standing_hold (
    domain   TEXT PRIMARY KEY,
    reason   TEXT NOT NULL,
    since_us INTEGER NOT NULL,
    until_us INTEGER
) WITHOUT ROWID;
