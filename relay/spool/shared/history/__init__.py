"""What has happened to messages: what is read of it, and what a report from outside adds to it.

- `journeys`: a message's journey in the spool, and its contents
- `message_list`: which messages a name, a search or a page of the list finds; what rows show
- `recorded_events`: events of all messages in their order, for followers
- `remote_reports`: which message a DSN or MDN from outside is about; what is recorded of it

Elsewhere: what a journey and its events are: `relay/journeys`; how long history is kept
(spool.keep): `relay/spool/shared/maintenance.py`.
"""
