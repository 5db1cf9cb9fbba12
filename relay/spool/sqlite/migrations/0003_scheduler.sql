-- From schema 2: priority levels, senders and retry times of entries; captured mail expires;
-- contents have a checksum and an index by file.

ALTER TABLE entry ADD COLUMN retry_us INTEGER;
ALTER TABLE entry ADD COLUMN lane INTEGER NOT NULL DEFAULT 1;
ALTER TABLE entry ADD COLUMN sender INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entry ADD COLUMN cause TEXT NOT NULL DEFAULT '';
ALTER TABLE entry ADD COLUMN cause_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE entry ADD COLUMN warn_us INTEGER;
ALTER TABLE entry ADD COLUMN priority INTEGER NOT NULL DEFAULT 1;
ALTER TABLE content ADD COLUMN crc32 INTEGER;

-- Before the indexes are created: each update would write to them.
DROP INDEX entry_live;
UPDATE entry SET retry_us = due_us, sender = coalesce((
    SELECT sender_key(iif(account <> '', account, reverse_path)) FROM message
    WHERE id = entry.message_id), 0)
    WHERE state <> 'final';
UPDATE entry SET due_us =
    coalesce((SELECT captured_until(received_us) FROM message WHERE id = entry.message_id), 0)
    WHERE state = 'captured';

CREATE INDEX entry_claimed ON entry (message_id, number) WHERE claimed = 1;
CREATE INDEX entry_due ON entry (lane, due_us, message_id, number, next_hop, sender, state)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_hop ON entry (next_hop, lane, sender, due_us)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX entry_sender ON entry (sender, lane, due_us, message_id, number, next_hop)
    WHERE claimed = 0 AND due_us IS NOT NULL;
CREATE INDEX content_file ON content (file) WHERE file IS NOT NULL;
