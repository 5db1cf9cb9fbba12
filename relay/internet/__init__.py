"""The simulated internet of the development relay: name server and mail hosts on loopback.

They are real servers, so that Relay delivers with the code that also runs in production. What a
host replies is decided by a Behaviour, what the name server answers by a Zone. `relay serve` never
imports this room.
"""
