"""The SMTP client, used by pickup (step 3) and delivery (step 6).

connect() opens a session with a target. A Connection runs transactions one after another. Every
wait has a time-out. Every reply is matched to its command; if that is impossible, the connection is
closed. Each recipient gets an outcome of its own.

`connect` opens a session, and decides what follows when a host does not offer STARTTLS; `tls`
checks certificates. `connection` runs transactions, `transaction` has the commands and the
outcomes, `client_protocol` the time-outs.
"""
