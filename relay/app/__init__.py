"""The composition root: builds all rooms from the settings, starts and stops them.

`foundation` opens the stores, `transport` and `front_door` build on them, `compose` puts all
together; `daemon` starts and stops it in order. `maintenance` and `pressure_monitor` run in the
background.
"""
