"""The pages: what a person sees of the relay in a browser.

Server-rendered HTML over the same functions as the JSON API (relay.api), in the same process.
`app` routes, `access` decides who the visitor is, `site` renders and sets the header fields that
protect a page, `logins` has the cookie.
"""

from relay.pages.access import Access
from relay.pages.app import PREFIXES, create_app
from relay.pages.live import LiveViews
from relay.pages.logins import Logins

__all__ = ["PREFIXES", "Access", "LiveViews", "Logins", "create_app"]
