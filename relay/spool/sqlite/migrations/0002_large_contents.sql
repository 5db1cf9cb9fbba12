-- From schema 1: of a content over 1 MiB the header stands in its row, and its file is the body alone.

ALTER TABLE content ADD COLUMN header BLOB;
ALTER TABLE content ADD COLUMN eight_bit INTEGER NOT NULL DEFAULT 0;
