-- From schema 3: the moment of the last commits, from which a start continues the queue's time.

CREATE TABLE clock (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    steady_us     INTEGER NOT NULL,
    wall_us       INTEGER NOT NULL,
    elapsed_us    INTEGER NOT NULL,
    boot_id       TEXT NOT NULL,
    doubtful_us   INTEGER NOT NULL,
    doubt_ends_us INTEGER NOT NULL
);
-- Until now a start took the wall clock: the time of the newest message is the latest known.
INSERT INTO clock
    SELECT 1, received_us, received_us, 0, '', 0, 0 FROM message ORDER BY id DESC LIMIT 1;
