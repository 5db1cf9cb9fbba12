-- From schema 3: the time of a recent commit, from which a start continues queue time.

CREATE TABLE clock (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    steady_us     INTEGER NOT NULL,
    wall_us       INTEGER NOT NULL,
    elapsed_us    INTEGER NOT NULL,
    boot_id       TEXT NOT NULL,
    doubtful_us   INTEGER NOT NULL,
    doubt_ends_us INTEGER NOT NULL
);
-- Schema 3 used the wall clock at each start: the newest message has the latest known time.
INSERT INTO clock
    SELECT 1, received_us, received_us, 0, '', 0, 0 FROM message ORDER BY id DESC LIMIT 1;
