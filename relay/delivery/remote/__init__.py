"""Delivery to other hosts: sites, what is known of their hosts, and connections to them.

Touches: sockets, through smtp; the resolver, through what it is given.
Promises: at most one unsettled transaction per connection; what a host takes is not exceeded; dead
    hosts do not delay live ones.
"""
