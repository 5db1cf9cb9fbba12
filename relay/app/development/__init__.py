"""The development relay: on loopback, without a file to write, from which no mail escapes.

Touches: a folder of its own. Promises: nothing leaves the machine; what it shows has happened.
"""
