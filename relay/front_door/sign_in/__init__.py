"""Sign-in: Entra's token endpoint, the tokens that it issues, and whose token a request has.

A program requests a token at Entra's paths, and sends it with each request of the Graph API or as
the password of an SMTP login. The key that signs tokens is a file in state_dir; codes and refresh
tokens are signed texts. What a token may do is looked up in the accounts at each request.

- `token_endpoint`: the paths of Entra; client credentials; error numbers; OpenID configuration
- `access_tokens`: issues and checks the endpoint's JWTs: signature, expiry, removed clients
- `authentication`: the account of a bearer token (401); requests without a token
- `token_login`: whether a bearer token is valid as an SMTP password (XOAUTH2, OAUTHBEARER)

Elsewhere: how users sign in to a development relay: `relay/development/user_grants.py`; which
secrets, keys and tokens accounts.toml has: `relay/base/accounts/directory.py`; passwords and the
delay after failed logins: `relay/base/accounts/passwords.py`; which scopes a request needs:
`relay/front_door/graph/routes.py`; logins of browsers: `relay/front_door/pages/logins.py`.
"""
