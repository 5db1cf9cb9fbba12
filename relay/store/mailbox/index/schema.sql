-- The index of a mailbox. It is a cache: an index of another version is rebuilt.

CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- `new_ns` and `cur_ns`: the modification times of those directories; 0 if they must be listed.
CREATE TABLE folder (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    directory BLOB NOT NULL,
    new_ns INTEGER NOT NULL DEFAULT 0,
    cur_ns INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    unread INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    state_bytes INTEGER NOT NULL DEFAULT 0
);

-- `uid` is received_us * 1024 plus a number, so that its order is that of time. `claimed_id` is the id
-- that a copy's file claims while another message has it. `first_seen_us`: when the file was first
-- found, 0 if it existed before the index. `content_level`: 1 with the header's columns, 2 with the full
-- text as well. `added_bytes`: how much larger the message is with CRLF line ends, from level 2. A key is
-- the beginning of a text, case-folded. `state` is a copy of what the file relay-properties has, in
-- JSON. `flag_status` is 0 without a flag, 1 flagged, 2 complete. `stay` is another number each time that
-- the message comes to a folder, 0 if it came before the index. `article` is a copy of its article
-- number in that folder; NULL if it is not known.
CREATE TABLE message (
    uid INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL,
    claimed_id TEXT NOT NULL,
    folder INTEGER NOT NULL,
    in_new INTEGER NOT NULL,
    file_name BLOB NOT NULL,
    base_name BLOB NOT NULL,
    generation INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    first_seen_us INTEGER NOT NULL,
    flags TEXT NOT NULL,
    is_read INTEGER NOT NULL,
    is_draft INTEGER NOT NULL,
    state BLOB NOT NULL,
    stay INTEGER NOT NULL,
    article INTEGER,
    state_bytes INTEGER NOT NULL,
    is_other INTEGER NOT NULL,
    flag_status INTEGER NOT NULL,
    flag_start_us INTEGER,
    flag_due_us INTEGER,
    flag_completed_us INTEGER,
    content_level INTEGER NOT NULL DEFAULT 0,
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
    class_key TEXT,
    has_attachments INTEGER,
    added_bytes INTEGER NOT NULL DEFAULT 0
);

CREATE UNIQUE INDEX message_id ON message (message_id);

-- Ids that are one message, with a space between them, whose states are still to be merged in the
-- file relay-properties; `state` is what they get if they have none.
CREATE TABLE unmerged_state (ids TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;

-- Multi-valued properties; `kind` is a Collection's value, or the id of an extended property in lower
-- case. A category and a value have no name.
CREATE TABLE item (
    kind TEXT NOT NULL,
    address_key TEXT NOT NULL,
    uid INTEGER NOT NULL,
    name_key TEXT NOT NULL,
    PRIMARY KEY (kind, address_key, uid, name_key)
) WITHOUT ROWID;

-- Without the prefix indexes, a query such as ab* would read and merge the entries of all words that
-- begin with ab.
CREATE VIRTUAL TABLE fulltext USING fts5(
    subject, body, sender, recipient, cc, bcc, attachment,
    content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2', prefix = '1 2 3'
);

-- Substring search in the keys.
CREATE VIRTUAL TABLE trigram USING fts5(
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
