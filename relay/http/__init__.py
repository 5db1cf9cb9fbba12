"""The HTTP server, requests and responses that graph and api share, bearer tokens, sign-in.

The server makes an HttpRequest of the octets of a client, and a response of what the handler
returns or raises. Bodies, headers, time, connections and memory are bounded for every request. An
unexpected exception becomes a 500 without internals; its traceback is logged with the request id.
"""
