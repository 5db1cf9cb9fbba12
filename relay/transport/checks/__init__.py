"""Who really sent a message: SPF (RFC 7208), DKIM (RFC 6376) and DMARC (RFC 9989) of strangers.

- `checker`: asks the DNS and the worker processes; the bounds of a message; the results
- `field`: the Authentication-Results field of the results (RFC 8601)
"""
