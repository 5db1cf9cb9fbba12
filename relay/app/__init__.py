"""The composition root: knows all rooms, builds them from the settings, starts and stops them.

commands/ has the code of the command line's verbs.
"""
