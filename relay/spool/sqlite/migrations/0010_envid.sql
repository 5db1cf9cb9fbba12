-- From schema 9: a report may name its original by the client's ENVID alone, see schema.sql.

CREATE INDEX message_envid ON message (envid, id)
    WHERE envid <> '' AND submission_id = '' AND trusted = 1;
