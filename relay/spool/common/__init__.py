"""What all engines do alike, by SQL that the database of each understands (relay.spool.tables).

`accepted_rows`, `settled_rows` and `due_claims` decide what acceptances, results and claims write;
`remote_reports` joins reports that come in. `queue_admin` executes operator commands:
`queue_changes` loads entries (`queued_entries`), decides (`queue_decisions`) and stores the result,
with the reports of `cancel_reports`; `queue_engine` says what it needs of an engine. `holds` says
why entries are held, `rows` how values are stored.
"""
