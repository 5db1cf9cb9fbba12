"""Step 6: delivery, to local mailboxes and by SMTP to the next hop.

`scheduler` is the queue manager: it takes claims from the spool and gives them to `site` (SMTP) or
`local_delivery`. `active_queue` bounds the claims in memory, `queue_scanner` fetches due entries,
`retry` has the retry schedule, `host_selection` chooses the next host if one does not answer, and
`attempt_recorder` commits the result of each attempt. A connection has at most one transaction that
is not settled, so a crash causes at most one second copy for each connection.
"""
