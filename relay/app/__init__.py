"""The composition root: alone knows all rooms, builds them from the settings, starts and stops
them. In rooms of their own: what the command's verbs do (commands), the development relay.

On the path: before it and after it.
Touches: everything, once. Promises: ready means that every listener listens; a stop within the
grace time loses nothing and exits 0.

Nothing is imported here: who asks a running daemon need not load one.
"""
