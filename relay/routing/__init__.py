"""Routing: from an address to its next hop (step 5), and from a next hop to its hosts (step 6).

`route_table` finds the next hop or the rejection of an address; it reads password files once, when
it is created. `resolver` finds the hosts with DNS; `dns_client` asks the name servers and caches
their answers, and nothing else uses the network. The resolver returns every answer of a name
server as a value; only a definite one is a permanent failure.
"""
