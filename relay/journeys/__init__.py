"""Journeys: what happened to each message, as events of the seven steps and as one JSON document.

The submission log keeps the events of steps 1 to 4, the spool those of steps 5 to 7. A journey
joins both by submission id and orders them by step. The rooms write events; the API and the
command line read journeys.

`events` has the events, `journey` joins them, `document` is the JSON, and `sentences` and
`wording` put it into words. `submission_log` writes and prunes steps 1 to 4, `log_reader` and
`open_submissions` read them; `spool_history` is what a spool is asked for steps 5 to 7.
`message_list` and `message_search` find messages, `event_feed` and `changes` follow them.
`relay/app/maintenance.py` prunes both stores.
"""
