ALTER TABLE recipient ADD COLUMN remote_id TEXT NOT NULL DEFAULT '';
CREATE INDEX recipient_remote_id ON recipient (remote_id) WHERE remote_id <> '';
