-- The spool in PostgreSQL, schema 4. Its tables and columns are those of relay/store/spool/sqlite/schema.sql,
-- which explains them; what is different here is said here. Text is compared octet by octet.
--
-- Entries and contents are only those that live: an entry that has ended is deleted, and its next hop
-- is kept with its recipients. These two tables are small, change all the time, and are vacuumed by
-- themselves.

CREATE TABLE message (
    id            text COLLATE "C" PRIMARY KEY,
    reverse_path  text COLLATE "C" NOT NULL,
    source        text COLLATE "C" NOT NULL,
    trusted       integer NOT NULL,
    received_us   bigint NOT NULL,
    expires_us    bigint NOT NULL,
    size          bigint NOT NULL,
    account       text COLLATE "C" NOT NULL,
    submission_id text COLLATE "C" NOT NULL,
    envid         text COLLATE "C" NOT NULL,
    ret           text COLLATE "C" NOT NULL,
    smtputf8      integer NOT NULL,
    eight_bit     integer NOT NULL,
    client        text COLLATE "C" NOT NULL,
    message_id    text COLLATE "C" NOT NULL,
    subject       text COLLATE "C" NOT NULL,
    extra         text COLLATE "C" NOT NULL DEFAULT ''
);
CREATE INDEX message_message_id ON message (message_id) WHERE message_id <> '';
CREATE INDEX message_submission ON message (submission_id) WHERE submission_id <> '';
CREATE INDEX message_envid ON message (envid, id)
    WHERE envid <> '' AND submission_id = '' AND trusted = 1;

-- A content has a number in its message. A body over 1 MiB is in the parts of `body`, which the
-- contents of a message share; '' is none.
CREATE TABLE content (
    message_id text COLLATE "C" NOT NULL,
    number     integer NOT NULL,
    size       bigint NOT NULL,
    data       bytea,
    header     bytea,
    body       text COLLATE "C" NOT NULL,
    eight_bit  integer NOT NULL,
    crc32      bigint NOT NULL,
    PRIMARY KEY (message_id, number)
) WITH (
    toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE content ALTER COLUMN data SET STORAGE EXTERNAL, ALTER COLUMN header SET STORAGE EXTERNAL;
CREATE INDEX content_body ON content (body) WHERE body <> '';

-- Parts are committed as they arrive; the acceptance of their message makes them durable.
CREATE TABLE body (
    id   text COLLATE "C" NOT NULL,
    part integer NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (id, part)
);
ALTER TABLE body ALTER COLUMN data SET STORAGE EXTERNAL;

-- `content_id` is the number of its content, `owner` the incarnation that has claimed it. `store` is the
-- number of the mail root in which the local mail of its message belongs; only the node that holds this
-- root claims local entries, so that `turn`, by which they are found, keeps those of each root apart.
CREATE TABLE entry (
    message_id     text COLLATE "C" NOT NULL,
    number         integer NOT NULL,
    next_hop       text COLLATE "C" NOT NULL,
    content_id     integer NOT NULL,
    state          text COLLATE "C" NOT NULL,
    claimed        integer NOT NULL,
    owner          bigint NOT NULL DEFAULT 0,
    due_us         bigint,
    attempts       integer NOT NULL,
    epoch          bigint NOT NULL,
    retry_us       bigint,
    lane           integer NOT NULL DEFAULT 1,
    sender         bigint NOT NULL DEFAULT 0,
    cause          text COLLATE "C" NOT NULL DEFAULT '',
    cause_attempts integer NOT NULL DEFAULT 0,
    warn_us        bigint,
    priority       integer NOT NULL DEFAULT 1,
    extra          text COLLATE "C" NOT NULL DEFAULT '',
    store          integer NOT NULL DEFAULT 0,
    turn           integer GENERATED ALWAYS AS (
                       lane + CASE WHEN next_hop = 'local' THEN 8 * store ELSE 0 END) STORED,
    PRIMARY KEY (message_id, number)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX entry_claimed ON entry (owner, message_id, number) WHERE claimed = 1;
CREATE INDEX entry_due ON entry (turn, due_us, message_id, number, next_hop, sender, state)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_hop ON entry (next_hop, turn, sender, due_us)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_sender ON entry (sender, turn, due_us, message_id, number, next_hop)
    WHERE claimed = 0 AND due_us IS NOT NULL;

-- `next_hop` is that of its entry, also when that has ended; '' without one.
CREATE TABLE recipient (
    message_id  text COLLATE "C" NOT NULL,
    entry       integer NOT NULL,
    number      integer NOT NULL,
    address     text COLLATE "C" NOT NULL,
    notify      text COLLATE "C" NOT NULL,
    orcpt       text COLLATE "C" NOT NULL,
    state       text COLLATE "C" NOT NULL,
    status      text COLLATE "C" NOT NULL,
    reply       text COLLATE "C" NOT NULL,
    added_by    text COLLATE "C" NOT NULL,
    successors  text COLLATE "C" NOT NULL,
    owed_report text COLLATE "C" NOT NULL DEFAULT '',
    next_hop    text COLLATE "C" NOT NULL DEFAULT '',
    remote_id   text COLLATE "C" NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, entry, number)
) WITH (fillfactor = 80);
CREATE INDEX recipient_remote_id ON recipient (remote_id) WHERE remote_id <> '';

-- The numbers of events: a transaction takes its own id before it takes any of them, so that a
-- reader can tell which are final (relay/store/spool/postgres/spool.py). They go on from the time at
-- which a node joins, so that after an older state was restored none is given again.
CREATE SEQUENCE event_number AS bigint CACHE 1;

CREATE TABLE event (
    message_id text COLLATE "C" NOT NULL,
    sequence   bigint NOT NULL,
    step       integer NOT NULL,
    at_us      bigint NOT NULL,
    detail     text COLLATE "C" NOT NULL,
    PRIMARY KEY (message_id, sequence)
);
CREATE INDEX event_sequence ON event (sequence);

CREATE TABLE submission (
    key        text COLLATE "C" PRIMARY KEY,
    message_id text COLLATE "C" NOT NULL,
    expires_us bigint NOT NULL
);
CREATE INDEX submission_expiry ON submission (expires_us);

-- A counter is the sum of its rows. Each commit adds rows with its number, and changes none: while
-- anybody holds a snapshot, a row that is changed all the time has ever more versions, which each
-- change reads. From time to time the rows of a node are added up in those with the number 0. `node`
-- is an incarnation; those of the ones that have ended are added up in the node 0.
CREATE TABLE counter (
    node   bigint NOT NULL,
    number bigint NOT NULL,
    name   text COLLATE "C" NOT NULL,
    value  bigint NOT NULL,
    PRIMARY KEY (node, number, name)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- A node's anchor: `wall_us` is the wall clock of this server, `elapsed_us` that of the node's machine.
CREATE TABLE clock (
    node          text COLLATE "C" PRIMARY KEY,
    steady_us     bigint NOT NULL,
    wall_us       bigint NOT NULL,
    elapsed_us    bigint NOT NULL,
    boot_id       text COLLATE "C" NOT NULL,
    doubtful_us   bigint NOT NULL,
    doubt_ends_us bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE TABLE mail_root (
    store   text COLLATE "C" PRIMARY KEY,
    id      text COLLATE "C" NOT NULL,             -- '': none has come yet
    number  integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    domains text COLLATE "C" NOT NULL DEFAULT ''   -- the local ones of its node, by spaces
);

CREATE TABLE owed_receipt (
    message_id text COLLATE "C" NOT NULL,
    number     integer NOT NULL,
    mailbox    text COLLATE "C" NOT NULL,
    copy_id    text COLLATE "C" NOT NULL,
    folder     text COLLATE "C" NOT NULL,
    owed_us    bigint NOT NULL,
    state      text COLLATE "C" NOT NULL,
    request    text COLLATE "C" NOT NULL,
    PRIMARY KEY (message_id, number)
);
CREATE INDEX owed_receipt_copy ON owed_receipt (mailbox, copy_id);

-- What makes digests of this spool other ones than those of any other.
CREATE TABLE salt (
    value text COLLATE "C" NOT NULL
);
INSERT INTO salt VALUES (CAST(gen_random_uuid() AS text));

-- The schemas that made these tables.
CREATE TABLE schema_version (
    version integer PRIMARY KEY,
    at_us   bigint NOT NULL
);

-- Each time that a node joined: see nodes.py. `pid` and `begun` are those of the backend of its write
-- connection in pg_stat_activity, `timeline` has the identifier of the cluster as well.
CREATE TABLE node (
    incarnation bigint PRIMARY KEY,
    name        text COLLATE "C" NOT NULL,
    state       text COLLATE "C" NOT NULL,   -- alive, stopped or dead
    beat        bigint NOT NULL,
    home        text COLLATE "C" NOT NULL,   -- the id of its state_dir
    place       text COLLATE "C" NOT NULL,   -- machine, boot, device and inode of its state_dir
    version     text COLLATE "C" NOT NULL,
    store       text COLLATE "C" NOT NULL,   -- whose mail root it holds; '' is none
    since_us    bigint NOT NULL,
    pid         integer NOT NULL,
    begun       text COLLATE "C" NOT NULL,
    timeline    text COLLATE "C" NOT NULL,
    beat_us     bigint NOT NULL,             -- when the last beat was: it is only shown
    digests     text COLLATE "C" NOT NULL    -- JSON, of what must be equal: see nodes.py
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE TABLE standing_hold (
    domain   text COLLATE "C" PRIMARY KEY,
    reason   text COLLATE "C" NOT NULL,
    since_us bigint NOT NULL,
    until_us bigint
);

CREATE TABLE usage (
    account    text COLLATE "C" NOT NULL,
    node       text COLLATE "C" NOT NULL,
    changed_us bigint NOT NULL,
    counts     text COLLATE "C" NOT NULL,
    PRIMARY KEY (account, node)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX usage_changed ON usage (changed_us);
