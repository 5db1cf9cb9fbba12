-- From schema 5: the id of the mail root, see schema.sql. The first start records it.

CREATE TABLE mail_root (
    store TEXT PRIMARY KEY,
    id    TEXT NOT NULL
) WITHOUT ROWID;
