"""The HTTP server, requests and responses that graph and api share, bearer tokens, sign-in.

The server makes an HttpRequest of the octets of a client, and a response of what the handler
returns or raises. Bodies, headers, time, connections and memory are bounded for every request. An
unexpected exception becomes a 500 without internals; its traceback is logged with the request id.

`http_server` binds the listeners, `protocol` is a connection with its time-outs,
`connection_limits` has the numbers. `gateway` calls a room's handler with an `http_request`;
`errors` writes what it raises. `authentication` finds the account of a bearer token, `sign_in`
issues tokens. `forwarded` finds the client behind a proxy, `base_path` removes the path that the
proxy passes on; `browsers` refuses cross-site requests.
"""
