-- From schema 7: success reports that are owed, see schema.sql.

ALTER TABLE recipient ADD COLUMN owed TEXT NOT NULL DEFAULT '';
