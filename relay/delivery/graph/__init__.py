"""Delivery by Microsoft Graph: a next hop graph://HOST.

In: a transaction, as for SMTP. Out: requests, each with exactly its recipients, and the result.

- `connection`: a session with the host: it opens the connection and makes the requests
- `claim_requests`: the requests of a claim that are in the spool
"""
