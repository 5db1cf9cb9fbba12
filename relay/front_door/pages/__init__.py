"""The pages: the relay in a browser.

Server-rendered HTML over the same functions as the JSON API (relay.front_door.api), in the same
process. The templates are in templates/, style sheet and script in static/.

What all pages share:

- `app`: which page answers a path, errors as pages, how many requests a visitor may have
- `login`: /login and /logout; where a request without a login is sent, and where `next` may lead
- `logins`: who the visitor is: a login, or everyone in an open development relay; checks address
  and password of a login; the cookie and its attributes; how long a login lasts, and what ends it;
  the form of a POST and its CSRF token
- `site`: templates, relative links, the Content-Security-Policy, static files; what a handler gets;
  what the header of each page says of the clock
- `live`: parts of a page that change by themselves (server-sent events), and how often

Messages:

- `message_list`: the first page: the list, its search, filters, tabs and pages; mark messages as
  read or unread, or delete them; /refused: what SMTP sessions refused
- `compose`: /compose in a development relay: write, reply and forward, by the Graph API; at which
  field an error is shown
- `undo`: the ten seconds in which the deletion of one message can be undone
- `help`: how to send a first message: the empty list, and /help; /help/programs: the programs of
  docs/snippets.md with this relay's ports
- `message`: /messages/{id}; send now, cancel a scheduled send, advance to what comes next
- `journey_view`: the seven steps of a message, what each event links to, and its recipients
- `axis`: attempts as a picture: lanes of recipients and reports, where bars and words are, and when
  time is left out

The content of a message:

- `content_pages`: HTML, text, headers, source and attachments; who may load remote images
- `content`: which parts of a content are shown: fields, links (and whether a link's text names
  another host: phishing), codes, file names of attachments
- `sanitize`: which HTML elements, attributes and URLs of a message a page shows, and which remote
  images a development relay may load

The queue and the relay:

- `queue_page`: /queue: entries, why they wait, tabs of states
- `queue_change`: retry, hold, release, cancel and reroute: the confirmation, and doing it; the
  conditions in a query or a form; send a copy of captured mail, in a development relay
- `health`: /health: readiness, queue, the last hour
- `charts`: the lines of a chart, and numbers and durations as text
- `development`: /clock: advance the clock; /internet: the simulated hosts, what they reply, and
  changes of it

Elsewhere: who may see whose messages, and run queue commands: `relay/front_door/api/handlers.py`;
words of a journey shared with `relay trace`: `relay/store/journeys/sentences.py`; the safe styles
and elements of HTML: `relay/formats/safe_markup.py`; foreign pages that make requests:
`relay/front_door/http/browsers.py`.
"""

from relay.front_door.pages.app import PREFIXES, create_app
from relay.front_door.pages.live import LiveViews
from relay.front_door.pages.logins import Access, Logins
from relay.front_door.pages.undo import PendingDeletions

__all__ = ["PREFIXES", "Access", "LiveViews", "Logins", "PendingDeletions", "create_app"]
