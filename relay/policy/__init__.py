"""Step 5: apply the mail-flow rules of policies/ to a message before it is accepted.

`conditions` and `actions` have the keys of `when` and `then`, `rules` a rule and a test as values.
`rule_files` loads the rules and `rule_test_reader` the tests, both with `table_reader`. `engine`
applies the rules that `rule_index` finds, `explanation` says what each rule compared, `rule_tests`
runs the [[test]] tables and formats the output of `relay policy`. Files are read only when the
rules are loaded. An evaluation is a pure function; its cost is bounded by the size of the message
and the numbers of recipients and rules.
"""
