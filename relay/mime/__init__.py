"""Formats: reading, writing and changing messages as octets (RFC 5322, MIME, DSN, drafts' files).

`convert` is step 3: a draft becomes MIME without Bcc. `write_header` makes the header of Graph's
properties (importance, categories), `read_header` reads them from it, `draft` is a draft's file.
`headers` edits header fields on the path, `dsn` writes bounces. The modules are pure functions of
relay.message's values: no sockets, no event loop, no clock.
"""
