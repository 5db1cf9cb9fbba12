"""$filter, $orderby and $search: from the text of an option to a query of the mailbox index.

An error is an ApiError 400 with the position, what was found and what was expected. Length, depth
and the number of terms are limited, and the time is linear in the length.

- `expression`: the grammar of $filter: operators and their precedence, literals, functions
- `filter`: which property may be compared with which value
- `resources`: which properties of messages, folders and users can be filtered and sorted by
- `search`: $search: words, phrases, properties (from:, received>=), AND, OR and NOT (KQL)
"""
