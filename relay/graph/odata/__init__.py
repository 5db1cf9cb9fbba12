"""OData's options in a URL, and Graph's $search, as the questions that the mailbox answers.

On the path: the listing handlers hand the text of an option in; relay.mailbox.query comes out.
Touches: nothing; text in, values out. tokens and expression know OData's grammar and no mail;
resolve says what an expression means for a resource, whose properties messages and folders list;
search reads Graph's keyword language, which is another one.
Promises: whatever is asked, a condition or an ApiError 400 that says where, what was found and what
was expected; length, depth and the number of terms are bounded, and time is linear in the length.
"""

from relay.graph.odata.resources import message_condition, message_order, select_folders
from relay.graph.odata.search import search_condition

__all__ = ["message_condition", "message_order", "search_condition", "select_folders"]
