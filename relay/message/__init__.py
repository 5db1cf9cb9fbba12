"""PURE: what a message is, and the values that rooms exchange.

Inside: content (octets, however many); properties, draft, privateblock, keeping (the draft form);
section, headread, structure, mimeread (reading what anybody wrote); convert, from_properties,
from_mime, htmltext (step 3); mimechange, mimebody (a MIME draft changed); headers (edits on the
way); address, envelope, xtext (SMTP); dsn, reporting, status (reports); classify, lifecycle, and
the values that rooms exchange: NextHop, Verdict, Outcome.
Touches nothing: no I/O, no clock, no randomness; imports nothing of Relay's.
"""
