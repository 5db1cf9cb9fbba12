-- Created after the first build. Each index ends with the uid, so it is in the order of time as well.

CREATE INDEX message_claimed_id ON message (claimed_id) WHERE claimed_id <> '';
CREATE INDEX message_location ON message (folder, in_new, file_name);
CREATE INDEX message_base_name ON message (base_name);
CREATE INDEX message_inode ON message (inode);
CREATE INDEX message_folder ON message (folder);
CREATE INDEX message_read ON message (is_read);
CREATE INDEX message_folder_read ON message (folder, is_read);
CREATE INDEX message_content_level ON message (content_level) WHERE content_level < 2;
CREATE INDEX message_subject ON message (subject_key) WHERE subject_key IS NOT NULL;
CREATE INDEX message_from ON message (from_key) WHERE from_key IS NOT NULL;
CREATE INDEX message_folder_from ON message (folder, from_key) WHERE from_key IS NOT NULL;
CREATE INDEX message_internet ON message (internet_key) WHERE internet_key IS NOT NULL;
CREATE INDEX message_conversation ON message (conversation_key) WHERE conversation_key IS NOT NULL;
CREATE INDEX item_uid ON item (uid);

CREATE TRIGGER message_added AFTER INSERT ON message BEGIN
    UPDATE folder SET total = total + 1, unread = unread + NOT new.is_read,
        size_bytes = size_bytes + new.size_bytes, state_bytes = state_bytes + new.state_bytes
        WHERE number = new.folder;
END;
CREATE TRIGGER message_removed AFTER DELETE ON message BEGIN
    UPDATE folder SET total = total - 1, unread = unread - NOT old.is_read,
        size_bytes = size_bytes - old.size_bytes, state_bytes = state_bytes - old.state_bytes
        WHERE number = old.folder;
    DELETE FROM item WHERE uid = old.uid;
    DELETE FROM fulltext WHERE rowid = old.uid;
    DELETE FROM trigram WHERE rowid = old.uid;
END;
CREATE TRIGGER message_changed AFTER UPDATE OF folder, is_read, size_bytes, state_bytes ON message
BEGIN
    UPDATE folder SET total = total - 1, unread = unread - NOT old.is_read,
        size_bytes = size_bytes - old.size_bytes, state_bytes = state_bytes - old.state_bytes
        WHERE number = old.folder;
    UPDATE folder SET total = total + 1, unread = unread + NOT new.is_read,
        size_bytes = size_bytes + new.size_bytes, state_bytes = state_bytes + new.state_bytes
        WHERE number = new.folder;
END;
-- A row whose content must be read again keeps nothing of what was read before.
CREATE TRIGGER message_emptied AFTER UPDATE OF content_level ON message WHEN new.content_level = 0 BEGIN
    DELETE FROM item WHERE uid = old.uid;
    DELETE FROM fulltext WHERE rowid = old.uid;
    DELETE FROM trigram WHERE rowid = old.uid;
END;
UPDATE folder SET
    total = (SELECT count(*) FROM message WHERE folder = number),
    unread = (SELECT count(*) FROM message WHERE folder = number AND NOT is_read),
    size_bytes = (SELECT coalesce(sum(size_bytes), 0) FROM message WHERE folder = number),
    state_bytes = (SELECT coalesce(sum(state_bytes), 0) FROM message WHERE folder = number);
