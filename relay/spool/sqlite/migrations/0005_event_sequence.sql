-- From schema 4: the sequence of an event is its place among the events of all messages. Older ones
-- were numbered for each message, and are not in the index.

CREATE INDEX event_sequence ON event (sequence) WHERE sequence > 1000000;
