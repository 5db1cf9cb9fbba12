"""The verbs that only the development relay has or obeys.

- `dev`: runs it: listeners that are taken, --once, what is shown of each message
- `dev_options`: the options of `relay dev`, and what each accepts
- `clock`: shows and advances its clock; `relay reset`
"""
