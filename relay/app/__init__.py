"""The composition root: builds all rooms from the settings, starts and stops them.

`compose` builds them, `daemon` starts and stops them in order, `development` is `relay dev`.
`maintenance` and `pressure_monitor` run in the background. `commands` has the code of the command
line's verbs.
"""
