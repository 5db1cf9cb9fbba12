"""The development relay: what `relay dev` and the test kit add to the rooms of a service.

`relay` composes one, `foreground` runs it for a person. The others are its parts.
"""
