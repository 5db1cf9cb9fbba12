"""Formats: reading, writing and changing messages as octets (RFC 5322, MIME, DSN, drafts' files).

Pure functions of relay.message's values: no sockets, no event loop, no clock.
"""
