"""Journeys: what happened to each message, as events of the seven steps and as one JSON document.

The submission log keeps the events of steps 1 to 4, the spool those of steps 5 to 7. A journey
joins both by submission id and orders them by step. The rooms write events; the API and the
command line read journeys.
"""
