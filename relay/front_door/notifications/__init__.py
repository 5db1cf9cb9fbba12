"""Notifications by HTTPS: to which receiver each change is sent, and until when.

- `https_client`: which URLs and addresses a request may go to; time-outs and bounds of an answer
- `subscriptions`: Graph's subscriptions: validation of their URLs, limits; changes that are sent or
  dropped (`missed`), expiration
- `subscription_file`: what is stored of each
- `mailbox_watch`: how a change of a mailbox is noticed
- `webhooks`: the events of journeys for an operator's URLs: their names, signatures, cursors
- `sender`: sends the feed of each receiver in order, with pauses after a failure; a receiver that
  is down delays no other
"""
