"""Values that rooms exchange: addresses, envelopes, contents, outcomes, states, Graph's properties.

Every step uses them. Pure: no I/O except reading the octets of a content, no clock, no randomness.
The modules import nothing of Relay but each other. Formats (MIME, headers, DSN) are in relay.mime.
"""
