-- From schema 8: fields by which no query selects, as JSON, see schema.sql.

ALTER TABLE message ADD COLUMN extra TEXT NOT NULL DEFAULT '';
ALTER TABLE entry ADD COLUMN extra TEXT NOT NULL DEFAULT '';
