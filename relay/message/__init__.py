"""PURE: what a message is, and the values that rooms exchange.

Addresses, envelope, header edits, the draft form, MIME conversion, DSNs, status codes, and the
values that rooms exchange: NextHop, Verdict, Outcome.
Touches nothing: no I/O, no clock, no randomness; imports nothing of Relay's.
"""
