-- From schema 6: the read receipts that senders asked for, see schema.sql.

CREATE TABLE owed_receipt (
    message_id TEXT NOT NULL,
    number     INTEGER NOT NULL,
    mailbox    TEXT NOT NULL,
    copy_id    TEXT NOT NULL,
    folder     TEXT NOT NULL,
    owed_us    INTEGER NOT NULL,
    state      TEXT NOT NULL,
    request    TEXT NOT NULL,
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE INDEX owed_receipt_copy ON owed_receipt (mailbox, copy_id);
