"""Step 5: apply the mail-flow rules of policies/ to a message before it is accepted.

`conditions` and `actions` have the keys of `when` and `then`. `rule_files` loads the rules,
`engine` applies them, `explanation` says what each rule compared, `rule_tests` runs the [[test]]
tables and formats the output of `relay policy`. Files are read only when the rules are loaded. An
evaluation is a pure function; its cost is bounded by the size of the message and the numbers of
recipients and rules.
"""
