"""Tokens for next hops (OAuth 2.0, RFC 6749).

In: the [[oauth]] of a configuration. Out: access tokens, for the logins of routes.

- `tokens`: asks token servers; holds the tokens: one request for all that wait, renewed early
- `client_secrets`: certificates and service accounts that give no token; secrets that end
- `grants`: what is asked for, by which grant and scope, and what the answers say
"""
