"""The composition root: builds all rooms from the settings, starts and stops them.

`compose` builds them, `daemon` starts and stops them in order. `maintenance` and
`pressure_monitor` run in the background.
"""
