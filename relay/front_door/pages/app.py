"""The pages as an ASGI application: routing, the visitor, and errors as pages.

Each page has a module with a handler `(PageRequest) -> Response`. A page is read with GET; a change
is a POST of a form with the visitor's CSRF token, answered with 303. The form of every request but
GET is read, and its token checked, before its handler is called.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.responses import Response

from relay.base.phrases import words_in
from relay.base.shares import NoPlaceError
from relay.front_door.api.dependencies import ApiDependencies
from relay.front_door.api.request_parameters import require_method
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.http.connection_limits import REQUESTS_MAX
from relay.front_door.http.errors import ApiError, no_place, quoted, service_unavailable
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.pages.compose import FORM_BYTES_MAX, compose_page
from relay.front_door.pages.content_pages import CONTENT_VIEWS
from relay.front_door.pages.development import CHANGES, change_internet, clock_page, internet_page
from relay.front_door.pages.health import health_page
from relay.front_door.pages.help import help_page, send_example, snippets_page
from relay.front_door.pages.live import LiveViews
from relay.front_door.pages.login import BODY_BYTES_MAX as LOGIN_BYTES_MAX
from relay.front_door.pages.login import login, login_needed, logout
from relay.front_door.pages.logins import Access, PageForm, Visitor, read_form
from relay.front_door.pages.message import advance_to_next, change_scheduled, message_page, set_tags
from relay.front_door.pages.message_list import marked_messages, message_list, refused_page
from relay.front_door.pages.queue_change import queue_change, release
from relay.front_door.pages.queue_page import queue_page
from relay.front_door.pages.site import PageRequest, PageSite
from relay.front_door.pages.undo import PendingDeletions
from relay.store.journeys.message_list import IndexFailedError
from relay.store.mailbox.errors import StoreError
from relay.store.spool.queue_commands import Operation
from relay.store.spool.types import SpoolError

# The first segments of the paths of pages; "" is the first page.
PREFIXES = (
    "",
    *words_in("messages refused queue internet clock health login logout static help compose"),
)
_BODY_BYTES_MAX = 1 << 20
# enough for all requests: slow clients cannot use it up
_HELD_BYTES_MAX = (8 << 20) + REQUESTS_MAX * LOGIN_BYTES_MAX


def create_app(
    dependencies: ApiDependencies,
    access: Access,
    *,
    live_views: LiveViews | None = None,
    deletions: PendingDeletions | None = None,
    graph: GraphDependencies | None = None,
) -> Gateway:
    """Return the application of the pages; `access` decides who the visitor is. With `graph`, the
    pages can send mail.

    The caller closes `live_views` and `deletions` at the end.
    """
    live_views = live_views or LiveViews(dependencies.changes, dependencies.clock)
    deletions = deletions or PendingDeletions(dependencies.clock)
    site = PageSite(dependencies, access, live_views, deletions=deletions, graph=graph)

    async def handle(request: HttpRequest) -> Response:
        visitor: Visitor | None = None
        try:
            if request.segments[:1] == ("static",) and len(request.segments) == 2:
                require_method(request, "GET")
                return site.static_file(request, request.segments[1])
            visitor = access.visitor(request)
            if request.segments == ("login",):
                return await login(request, visitor, site)
            if visitor is None:
                return login_needed(request, site)
            request.account = visitor.principal.name
            form = PageForm(())
            if request.method != "GET":
                has_files = request.segments == ("compose",)
                form = await read_form(request, visitor.csrf, has_files=has_files)
            asked = PageRequest(site, request, visitor, form)
            if request.segments == ("logout",):
                return logout(asked)
            return await _page(asked)
        except NoPlaceError as error:
            return site.error(request, visitor, no_place(error))
        except (IndexFailedError, SpoolError, StoreError) as error:
            failure = service_unavailable(str(error), retry_after_s=5)
            return site.error(request, visitor, failure)
        except ApiError as error:
            return site.error(request, visitor, error)

    body_bytes = FORM_BYTES_MAX if graph is not None else _BODY_BYTES_MAX
    held_bytes = _HELD_BYTES_MAX + body_bytes
    limits = RequestLimits(body_bytes=body_bytes, held_bytes=held_bytes, bound="page bodies")
    return Gateway(handle, clock=dependencies.clock, limits=limits)


async def _content(request: PageRequest) -> Response:
    return await request.site.contents.response(request.http, request.visitor, request.key)


Handler = Callable[[PageRequest], Awaitable[Response]]
_READ, _POST, _BOTH = ("GET",), ("POST",), ("GET", "POST")
# The methods and the handler of a page, by its path; "*" is the id of a message.
PAGES: Mapping[tuple[str, ...], tuple[Sequence[str], Handler]] = {
    (): (_READ, message_list),
    ("messages",): (_BOTH, marked_messages),
    ("messages", "*"): (_READ, message_page),
    ("messages", "*", "send-now"): (_POST, change_scheduled),
    ("messages", "*", "cancel-send"): (_POST, change_scheduled),
    ("messages", "*", "advance"): (_POST, advance_to_next),
    **{("messages", "*", view): (_READ, _content) for view in CONTENT_VIEWS},
    ("messages", "*", "attachments", "*"): (_READ, _content),
    ("refused",): (_READ, refused_page),
    ("health",): (_READ, health_page),
    ("queue",): (_READ, queue_page),
    **{("queue", operation): (_BOTH, queue_change) for operation in Operation},
    ("help",): (_READ, help_page),
}
DEVELOPMENT_PAGES: Mapping[tuple[str, ...], tuple[Sequence[str], Handler]] = {
    ("messages", "*", "release"): (_POST, release),
    ("messages", "*", "tags"): (_POST, set_tags),
    ("clock",): (_BOTH, clock_page),
    ("internet",): (_READ, internet_page),
    **{("internet", change): (_POST, change_internet) for change in CHANGES},
    ("compose",): (_BOTH, compose_page),
    ("help", "programs"): (_READ, snippets_page),
    ("help", "example"): (_POST, send_example),
}


async def _page(request: PageRequest) -> Response:
    """Return the page of a path. Raises ApiError 404, 405."""
    path = request.http.segments
    pages = {**PAGES, **(DEVELOPMENT_PAGES if request.site.handlers.is_development else {})}
    if path[:1] == ("messages",):
        path = tuple("*" if place in (1, 3) else name for place, name in enumerate(path))
    if path not in pages:
        path_text = quoted("/".join(request.http.segments))
        raise ApiError(404, "ResourceNotFound", f"There is no page {path_text}.")
    methods, handler = pages[path]
    require_method(request.http, *methods)
    return await handler(request)
