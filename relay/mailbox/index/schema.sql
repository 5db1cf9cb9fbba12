-- The index of a mailbox. It is a cache: another version of it is made anew.

CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- `new_ns` and `cur_ns`: when those directories changed last; 0 if they are to be listed.
CREATE TABLE folder (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    directory BLOB NOT NULL,
    new_ns INTEGER NOT NULL DEFAULT 0,
    cur_ns INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    unread INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0
);

-- `uid` is received_us * 1024 and a number, so that its order is that of time. `claimed` is the id
-- that a copy's file names and another message has. `seen_us`: when the file was first seen, 0 if it
-- was there before the index. `filled`: 1 with the header's facts, 2 with the words as well; a key is
-- a text's beginning without regard to case.
CREATE TABLE message (
    uid INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL,
    claimed TEXT NOT NULL,
    folder INTEGER NOT NULL,
    in_new INTEGER NOT NULL,
    file_name BLOB NOT NULL,
    stem BLOB NOT NULL,
    generation INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    written_ns INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    seen_us INTEGER NOT NULL,
    flags TEXT NOT NULL,
    is_read INTEGER NOT NULL,
    is_flagged INTEGER NOT NULL,
    is_draft INTEGER NOT NULL,
    filled INTEGER NOT NULL DEFAULT 0,
    subject_key TEXT,
    from_key TEXT,
    from_name_key TEXT,
    sender_key TEXT,
    sender_name_key TEXT,
    sent_us INTEGER,
    created_us INTEGER,
    modified_us INTEGER,
    importance INTEGER,
    internet_key TEXT,
    conversation_key TEXT,
    has_attachments INTEGER
);

CREATE UNIQUE INDEX message_id ON message (message_id);

-- What a message may have several of; `kind` is a Collection's value, a category has no name.
CREATE TABLE item (
    kind TEXT NOT NULL,
    address_key TEXT NOT NULL,
    uid INTEGER NOT NULL,
    name_key TEXT NOT NULL,
    PRIMARY KEY (kind, address_key, uid, name_key)
) WITHOUT ROWID;

-- Without the indexes of prefixes, a word of up to three letters and * reads and merges the entries of
-- all words that begin so.
CREATE VIRTUAL TABLE word USING fts5(
    subject, body, sender, recipient, cc, bcc, attachment,
    content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3'
);

-- Three letters each, for what is contained in a key.
CREATE VIRTUAL TABLE piece USING fts5(
    subject_key, from_key, from_name_key,
    content = '', contentless_delete = 1, tokenize = 'trigram'
);

CREATE TABLE change (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    message_id TEXT NOT NULL,
    folder_id TEXT NOT NULL,
    previous_folder_id TEXT NOT NULL
);
