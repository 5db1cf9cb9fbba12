"""Formats: reading, writing and changing messages as octets (RFC 5322, MIME, DSN, drafts' files).

`convert` is step 3: a draft becomes MIME without Bcc. `headers` edits header fields on the path,
`dsn` writes bounces. The modules are pure functions of relay.message's values: no sockets, no event
loop, no clock.
"""
