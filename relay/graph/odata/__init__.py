"""$filter, $orderby and $search: from the text of an option to a query of the mailbox index.

expression has the grammar of OData; filter binds an expression to the properties of a resource,
which resources lists for messages, folders and users; search parses Graph's keyword query language
(KQL). An error is an ApiError 400 with the position, what was found and what was expected. Length,
depth and the number of terms are limited, and the time is linear in the length.
"""
