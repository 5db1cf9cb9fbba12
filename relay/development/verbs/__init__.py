"""The verbs that only the development relay has or obeys.

- `dev`: runs it: listeners that are taken; what is printed of each message, and with --once
- `dev_options`: the options of `relay dev`, and what each accepts
- `clock`: shows and advances its clock; `relay reset`
"""
