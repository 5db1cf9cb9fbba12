"""Notifications by HTTPS: who is told of what, until the receiver has taken it.

- `https_client`: which URLs and addresses a request may go to; time-outs and bounds of an answer
- `sender`: sends feeds in order, with pauses after a failure; one that is down delays nobody else's
"""
