"""Notifications by HTTPS: who is told of what, until the receiver has taken it.

- `https_client`: which URLs and addresses a request may go to; time-outs and bounds of an answer
- `subscriptions`: Graph's subscriptions: validation of their URLs, limits; what they are notified
  of, what is dropped (`missed`), when they end
- `subscription_file`: what is stored of each
- `mailbox_watch`: how a change of a mailbox is noticed
- `webhooks`: the events of journeys for an operator's URLs: their names, signatures, cursors
- `sender`: sends the feed of each receiver in order, with pauses after a failure; one that is down
  delays no other
"""
