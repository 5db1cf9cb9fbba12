"""Step 1: who comes in by HTTP, what may be asked, and who is notified of new mail.

In: requests of Graph clients, browsers and operators. Out: drafts and
submissions (by `relay/submission/outbox`, which syncs them before the 202), answers, notifications
by HTTPS.

- `http`: connections and their TLS, limits, bodies, error responses, requests of foreign web pages
- `sign_in`: the token endpoint, tokens and grants: whose request it is
- `graph`: Microsoft Graph: sendMail, drafts, replies, folders, search, delta, subscriptions
- `api`: /relay/v1: journeys, queue commands, health, metrics, release of captured mail
- `pages`: the pages in a browser: lists, messages, previews, the queue, logins
- `notifications`: subscriptions and webhooks: what is sent to whom, in which order, how often

Elsewhere: when the draft is on disk: `relay/submission/outbox`; mailboxes and their index:
`relay/store/mailbox`; how a body becomes a draft: `relay/formats`; accounts and their rights:
`relay/base/accounts`; why /readyz is 503: `relay/operation/app/front_door.py`; Mailpit's API:
`relay/development/mailpit.py`.
"""
