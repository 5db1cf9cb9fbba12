-- From schema 1: the header of a content over 1 MiB is in its row, and its file has only the body.

ALTER TABLE content ADD COLUMN header BLOB;
ALTER TABLE content ADD COLUMN eight_bit INTEGER NOT NULL DEFAULT 0;
