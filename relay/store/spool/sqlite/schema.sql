-- The spool, schema 4. Times are microseconds since 1970 UTC; message ids sort by time.
-- Clustered keys (WITHOUT ROWID) store the rows of one message together, so that only the indexes
-- on due times and expiry are written in addition. migrate.py adds the table `migration`, which
-- records the schemas that made the file. Each change here needs a migration, NNNN_NAME.sql.
-- `extra` is one JSON text with the fields by which no query selects; '' is all defaults. A field in
-- it needs no migration: relay/store/spool/types.py has those of this Relay, and the others are kept.

-- Files of Relay 0.2.0 and later have it in their header.
PRAGMA application_id = 0x52656C79;

CREATE TABLE message (
    id            TEXT PRIMARY KEY,   -- queue id
    reverse_path  TEXT NOT NULL,
    source        TEXT NOT NULL,      -- graph | smtp | sendmail | report
    trusted       INTEGER NOT NULL,
    received_us   INTEGER NOT NULL,
    expires_us    INTEGER NOT NULL,
    size          INTEGER NOT NULL,
    account       TEXT NOT NULL,
    submission_id TEXT NOT NULL,
    envid         TEXT NOT NULL,
    ret           TEXT NOT NULL,
    smtputf8      INTEGER NOT NULL,
    eight_bit     INTEGER NOT NULL,
    client        TEXT NOT NULL,
    message_id    TEXT NOT NULL,
    subject       TEXT NOT NULL,
    extra         TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX message_message_id ON message (message_id) WHERE message_id <> '';
CREATE INDEX message_submission ON message (submission_id) WHERE submission_id <> '';
-- What a trusted client gave as ENVID; pickup's submissions, whose ENVID is their id, are not in it.
CREATE INDEX message_envid ON message (envid, id)
    WHERE envid <> '' AND submission_id = '' AND trusted = 1;

-- The bytes of a message: one row per version, shared by entries, deleted with its last live entry.
CREATE TABLE content (
    id   INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    data BLOB,                        -- inline
    file TEXT,                        -- or a file name in the content directory
    header BLOB,                      -- of a large content; its file has the body
    eight_bit INTEGER NOT NULL DEFAULT 0, -- whether the body in the file is not ASCII
    crc32 INTEGER NOT NULL            -- of data, or of the file followed by the header
);
CREATE INDEX content_file ON content (file) WHERE file IS NOT NULL;

-- The copy of a message for one next hop: the unit of scheduling.
CREATE TABLE entry (
    message_id TEXT NOT NULL,
    number     INTEGER NOT NULL,      -- from 1
    next_hop   TEXT NOT NULL,
    content_id INTEGER NOT NULL,
    state      TEXT NOT NULL,         -- queued | deferred | held | captured | final
    claimed    INTEGER NOT NULL,
    due_us     INTEGER,               -- when to claim it next: the earliest of retry_us, warn_us and
                                      -- its expiry; null when final
    attempts   INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    retry_us   INTEGER,               -- time of the next attempt; null: none is scheduled
    lane       INTEGER NOT NULL DEFAULT 1, -- priority level: 0 high, 1 normal, 2 low, 3 unreachable
    sender     INTEGER NOT NULL DEFAULT 0, -- for the round robin: hash of account or reverse-path
    cause      TEXT NOT NULL DEFAULT '',   -- class of the last deferral
    cause_attempts INTEGER NOT NULL DEFAULT 0, -- consecutive deferrals of this class
    warn_us    INTEGER,               -- when to send the delay report; null: never, or sent
    priority   INTEGER NOT NULL DEFAULT 1, -- the level that the message requested: 0, 1 or 2
    extra      TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
-- An entry that is claimed at acceptance and delivered is written to the first index only.
CREATE INDEX entry_claimed ON entry (message_id, number) WHERE claimed = 1;
CREATE INDEX entry_due ON entry (lane, due_us, message_id, number, next_hop, sender, state)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_hop ON entry (next_hop, lane, sender, due_us)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_sender ON entry (sender, lane, due_us, message_id, number, next_hop)
    WHERE claimed = 0 AND due_us IS NOT NULL;

-- `number` counts from 1 in the order of the envelope; `entry` is 0 for what was final at acceptance.
-- `successors` are addresses, one per line. `owed_report` are the time and the host of a relay that
-- the report at the end of the attempt names; '' is none. `remote_id` is the id under which the next
-- host accepted the message for it, if it may be the Message-ID there; '' is none.
CREATE TABLE recipient (
    message_id  TEXT NOT NULL,
    entry       INTEGER NOT NULL,
    number      INTEGER NOT NULL,
    address     TEXT NOT NULL,
    notify      TEXT NOT NULL,
    orcpt       TEXT NOT NULL,
    state       TEXT NOT NULL,
    status      TEXT NOT NULL,
    reply       TEXT NOT NULL,
    added_by    TEXT NOT NULL,
    successors  TEXT NOT NULL,
    owed_report TEXT NOT NULL DEFAULT '',
    remote_id   TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, entry, number)
) WITHOUT ROWID;
CREATE INDEX recipient_remote_id ON recipient (remote_id) WHERE remote_id <> '';

-- Append-only. An attempt is an event of step 6 with the outcome of each recipient.
CREATE TABLE event (
    message_id TEXT NOT NULL,
    sequence   INTEGER NOT NULL,      -- the order in which the events of all messages were recorded:
                                      -- about the time in microseconds
    step       INTEGER NOT NULL,
    at_us      INTEGER NOT NULL,
    detail     TEXT NOT NULL,
    PRIMARY KEY (message_id, sequence)
) WITHOUT ROWID;
CREATE INDEX event_sequence ON event (sequence);

-- The message of each submission key; kept independently of history.
CREATE TABLE submission (
    key        TEXT PRIMARY KEY,
    message_id TEXT NOT NULL,
    expires_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX submission_expiry ON submission (expires_us);

-- Recipients accepted, and final by state; relay_queue_unaccounted is computed from them.
CREATE TABLE counter (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
-- One row: a recent commit's time on each clock of the machine. A start continues queue time, in
-- which all times here are stored, from it (relay.base.clock.Anchor).
CREATE TABLE clock (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    steady_us     INTEGER NOT NULL,
    wall_us       INTEGER NOT NULL,
    elapsed_us    INTEGER NOT NULL,
    boot_id       TEXT NOT NULL,
    doubtful_us   INTEGER NOT NULL,
    doubt_ends_us INTEGER NOT NULL
);
-- The id of the mail root of each store: mail that is delivered locally belongs in no other.
CREATE TABLE mail_root (
    store TEXT PRIMARY KEY,
    id    TEXT NOT NULL
) WITHOUT ROWID;
-- Read receipts that senders asked for (RFC 8098), by the copy in a mailbox. They outlive the history
-- of their message.
CREATE TABLE owed_receipt (
    message_id TEXT NOT NULL,
    number     INTEGER NOT NULL,      -- of the recipient
    mailbox    TEXT NOT NULL,         -- the address of its account
    copy_id    TEXT NOT NULL,         -- the id of the message there
    folder     TEXT NOT NULL,         -- where it was seen last: a directory there; '': the Inbox
    owed_us    INTEGER NOT NULL,      -- when it was delivered
    state      TEXT NOT NULL,         -- owed | held: it was restored | sent: the copy is not marked yet
    request    TEXT NOT NULL,         -- JSON: what the notification says of the message
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE INDEX owed_receipt_copy ON owed_receipt (mailbox, copy_id);
-- Domains of recipients for which mail is held as it comes.
CREATE TABLE standing_hold (
    domain   TEXT PRIMARY KEY,        -- or "*.DOMAIN"
    reason   TEXT NOT NULL,           -- who holds it, and why
    since_us INTEGER NOT NULL,        -- wall time
    until_us INTEGER                  -- queue time; null: until a release
) WITHOUT ROWID;
-- What accounts have sent to the outside, see relay/base/accounts/usage.py.
CREATE TABLE usage (
    account    TEXT NOT NULL,
    node       TEXT NOT NULL,         -- that has counted it
    changed_us INTEGER NOT NULL,      -- wall time
    counts     TEXT NOT NULL,         -- JSON
    PRIMARY KEY (account, node)
) WITHOUT ROWID;
CREATE INDEX usage_changed ON usage (changed_us);
