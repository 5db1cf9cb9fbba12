"""Journeys: what happened to each message, as events of the seven steps and as one JSON document.

The submission log keeps the events of steps 1 to 4, the spool those of steps 5 to 7. A journey
joins both by submission id and orders them by step. The rooms write events; the API and the
command line read journeys.

- `details`: what is recorded of an event, of each kind; what can be read of a stored one
- `events`: an event, the seven steps, and a line of the submission log
- `submission_log`: the log of steps 1 to 4: written, searched, and pruned by days
- `log_reader`: reads the submission log forward from a position
- `open_submissions`: submissions not yet accepted, and their state before the queue: scheduled,
  converting, cancelled, failed (state_before_queue)
- `spool_history`: what a spool is asked for: steps 5 to 7
- `journey`: joins both parts to a journey; which names find a message; whose journeys one sees
- `document`: the fields of a journey's JSON; attempts
- `sender_view`: what the account of the sender does not see: quarantine, journal reports, notices

In words:

- `sentences`: the answer: what became of the message, and why, for each recipient; what reports by
  Relay and from outside say of a recipient
- `wording`: the words for an event, as `relay trace` prints it

Lists and events:

- `message_list`: conditions of the message list, the place of a message, and its row;
  the message that a failed wait nearly found; a search in all texts (`relay dev`)
- `list_places`: which messages are on a page of the list
- `event_feed`: the events of all messages after a cursor; wakes tasks that wait for a change

Elsewhere: states of recipients and of a message in the queue: `relay/base/message/lifecycle.py`;
the events of an attempt: `relay/delivery/attempt_result.py`; pruning:
`relay/operation/app/maintenance.py`.
"""
