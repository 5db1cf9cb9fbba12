"""Step 5: the SMTP server, for clients and for pickup (end of step 3), up to the 250.

A 250 to the final dot means that the message, its recipients and the reports that are already due
are durable. Only CRLF.CRLF ends the data. Clients that are not trusted cannot relay. An internal
error is a 4yz reply with a fixed text.

`smtp_server` is a listener, `smtp_session` a connection (`session_limits` has its limits),
`smtp_commands` has the commands (EHLO, MAIL, RCPT, DATA ...), `authentication` the AUTH exchange
and its failures. `session_refusals` records what a session refuses, for a store of relay/refusals.
`send_as` checks which addresses an account may use. `data` finds the end of a content, checks it
and keeps it. `acceptance` runs step 5 (`message_limits` has its limits), `header_cleanup` edits the
header (Received, Bcc), `fanout` sorts recipients into queue entries.
"""
