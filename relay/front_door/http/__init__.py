"""The HTTP server, requests and responses that graph, api and sign_in share.

The server makes an HttpRequest of the octets of a client, and a response of what the handler
returns or raises. Bodies, headers, time, connections and memory are bounded for every request. An
unexpected exception becomes a 500 without internals; its traceback is logged with the request id.

The connection:

- `http_server`: binds the listeners, starts and stops; keep-alive (time of an idle connection); the
  TLS handshake of a connection
- `protocol`: header size, time-outs of header and response, the Host field
- `connection_limits`: how many connections and running requests, in all and per client; which
  close; the client behind a reverse proxy: X-Forwarded-For, Forwarded
- `tunnels`: what a development relay answers as a proxy (CONNECT)
- `web_socket`: WebSockets: the handshake, what ends one, what a client may send

The request:

- `browsers`: requests of foreign web pages (403), CORS
- `path_router`: which room a path belongs to; removes the path of public_url
- `gateway`: request ids, 500, 503 at a stop, large responses while memory is short
- `http_request`: path, query and body: 413, 415, time-out of a body
- `errors`: ApiError, and Graph's JSON of an error

The response:

- `responses`: JSON, and bodies that are read while they are sent
- `event_stream`: server-sent events

Elsewhere: the account of a bearer token, the token endpoint: `relay/front_door/sign_in`; which
scopes a request needs: `relay/front_door/graph/routes.py`; logins of browsers:
`relay/front_door/pages/logins.py`.
"""
