-- The spool, schema 4. Times are microseconds since 1970 UTC; ids of messages sort by time.
-- Clustered keys (WITHOUT ROWID) keep what belongs to one message together, so that nothing
-- but what is due and what expires is written twice. migrate.py adds the table `migration`, which
-- says what made the file. A change here is a change in migrations/ as well.

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
    subject       TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX message_message_id ON message (message_id) WHERE message_id <> '';
CREATE INDEX message_submission ON message (submission_id) WHERE submission_id <> '';

-- Bytes, once per version however many entries share them; gone with their last live entry.
CREATE TABLE content (
    id   INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    data BLOB,                        -- inline, or
    file TEXT,                        -- a name in the content directory
    header BLOB,                      -- of a large one, whose file then has its body only
    eight_bit INTEGER NOT NULL DEFAULT 0, -- whether that body is not ASCII
    crc32 INTEGER                     -- of data, or of the file and then the header; null: not known
);
CREATE INDEX content_file ON content (file) WHERE file IS NOT NULL;

-- The copy for one next hop: the unit of scheduling.
CREATE TABLE entry (
    message_id TEXT NOT NULL,
    number     INTEGER NOT NULL,      -- from 1
    next_hop   TEXT NOT NULL,
    content_id INTEGER NOT NULL,
    state      TEXT NOT NULL,         -- queued | deferred | held | captured | final
    claimed    INTEGER NOT NULL,
    due_us     INTEGER,               -- when to look at it next: the earliest of retry_us, warn_us and
                                      -- its expiry; null when final
    attempts   INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    retry_us   INTEGER,               -- when it may be tried; null: not by itself
    lane       INTEGER NOT NULL DEFAULT 1, -- 0 high, 1 normal, 2 low, 3: nobody was at its site
    sender     INTEGER NOT NULL DEFAULT 0, -- whose turn it is: a hash of the account or reverse-path
    cause      TEXT NOT NULL DEFAULT '',   -- class of the last deferral
    cause_attempts INTEGER NOT NULL DEFAULT 0, -- how many in a row had it
    warn_us    INTEGER,               -- when the sender would hear of the delay; null: not, or done
    priority   INTEGER NOT NULL DEFAULT 1, -- the lane that its message asked for: 0, 1 or 2
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
-- An entry that is accepted claimed, and delivered, touches the first of these only.
CREATE INDEX entry_claimed ON entry (message_id, number) WHERE claimed = 1;
CREATE INDEX entry_due ON entry (lane, due_us, message_id, number, next_hop, sender, state)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_hop ON entry (next_hop, lane, sender, due_us)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_sender ON entry (sender, lane, due_us, message_id, number, next_hop)
    WHERE claimed = 0 AND due_us IS NOT NULL;

CREATE TABLE recipient (
    message_id TEXT NOT NULL,
    entry      INTEGER NOT NULL,      -- 0: final from the start
    number     INTEGER NOT NULL,      -- from 1, in the order of the envelope
    address    TEXT NOT NULL,
    notify     TEXT NOT NULL,
    orcpt      TEXT NOT NULL,
    state      TEXT NOT NULL,
    status     TEXT NOT NULL,
    reply      TEXT NOT NULL,
    added_by   TEXT NOT NULL,
    successors TEXT NOT NULL,         -- addresses, one a line
    PRIMARY KEY (message_id, entry, number)
) WITHOUT ROWID;

-- Append-only. An attempt is an event of step 6 that tells each recipient's outcome.
CREATE TABLE event (
    message_id TEXT NOT NULL,
    sequence   INTEGER NOT NULL,
    step       INTEGER NOT NULL,
    at_us      INTEGER NOT NULL,
    detail     TEXT NOT NULL,
    PRIMARY KEY (message_id, sequence)
) WITHOUT ROWID;

-- Which submission became which message; independent of history.
CREATE TABLE submission (
    key        TEXT PRIMARY KEY,
    message_id TEXT NOT NULL,
    expires_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX submission_expiry ON submission (expires_us);

-- accepted, and final by state: what relay_queue_unaccounted is computed from.
CREATE TABLE counter (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
-- One row: the moment of the last commits on all clocks of the machine, from which a start continues
-- the time in which all others here are kept (relay.clock.Anchor).
CREATE TABLE clock (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    steady_us     INTEGER NOT NULL,
    wall_us       INTEGER NOT NULL,
    elapsed_us    INTEGER NOT NULL,
    boot_id       TEXT NOT NULL,
    doubtful_us   INTEGER NOT NULL,
    doubt_ends_us INTEGER NOT NULL
);
