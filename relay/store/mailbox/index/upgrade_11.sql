-- Version 12 in place of version 11, with the same change feed. Files of other programs, and drafts, may
-- have lines that end in LF alone: their texts are read again.

ALTER TABLE message ADD COLUMN added_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE message SET content_level = 0
    WHERE content_level = 2 AND CAST(base_name AS TEXT) NOT GLOB '*.Rl*';
PRAGMA user_version = 12;
