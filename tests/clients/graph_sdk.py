"""What the tests say in the words of msgraph-sdk: a client, messages, options. See its own documentation."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from kiota_abstractions.authentication import (
    AccessTokenProvider,
    AllowedHostsValidator,
    BaseBearerTokenAuthenticationProvider,
)
from kiota_abstractions.base_request_configuration import RequestConfiguration
from kiota_abstractions.headers_collection import HeadersCollection
from kiota_abstractions.method import Method
from kiota_abstractions.request_information import RequestInformation
from msgraph import GraphRequestAdapter, GraphServiceClient
from msgraph.generated.models.attachment_item import AttachmentItem
from msgraph.generated.models.attachment_type import AttachmentType
from msgraph.generated.models.body_type import BodyType
from msgraph.generated.models.email_address import EmailAddress
from msgraph.generated.models.file_attachment import FileAttachment
from msgraph.generated.models.internet_message_header import InternetMessageHeader
from msgraph.generated.models.item_body import ItemBody
from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph.generated.models.recipient import Recipient
from msgraph.generated.models.single_value_legacy_extended_property import (
    SingleValueLegacyExtendedProperty,
)
from msgraph.generated.users.item.messages.item.attachments.create_upload_session.create_upload_session_post_request_body import (
    CreateUploadSessionPostRequestBody,
)
from msgraph.generated.users.item.send_mail.send_mail_post_request_body import (
    SendMailPostRequestBody,
)
from msgraph_core.requests.batch_request_content import BatchRequestContent
from msgraph_core.tasks.page_iterator import PageIterator

ERRORS = {"XXX": ODataError}


class FixedToken(AccessTokenProvider):
    """An account's token, as it is in accounts.toml."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_authorization_token(self, uri: str, additional: Any = None) -> str:
        return self._token

    def get_allowed_hosts_validator(self) -> AllowedHostsValidator:
        return AllowedHostsValidator([])


def client(url: str, token: str) -> GraphServiceClient:
    """A client of the relay at `url` with a token of its own."""
    adapter = GraphRequestAdapter(BaseBearerTokenAuthenticationProvider(FixedToken(token)))
    adapter.base_url = f"{url}/v1.0"
    return GraphServiceClient(request_adapter=adapter)


def people(*addresses: str) -> list[Recipient]:
    return [Recipient(email_address=EmailAddress(address=one)) for one in addresses if one]


def message(subject: str, *, to: str = "", html: str = "", text: str = "Hello.") -> Message:
    body = ItemBody(content_type=BodyType.Html if html else BodyType.Text, content=html or text)
    return Message(subject=subject, body=body, to_recipients=people(to))


def mail(
    subject: str,
    *,
    to: str = "",
    bcc: str = "",
    html: str = "",
    headers: Sequence[str] = (),
    send_at: str = "",
    save: bool | None = None,
) -> SendMailPostRequestBody:
    """The body of sendMail; each header has the value `value`. The SDK's own default is not to save."""
    made = message(subject, to=to, html=html)
    if bcc:
        made.bcc_recipients = people(bcc)
    if headers:
        made.internet_message_headers = [
            InternetMessageHeader(name=name, value="value") for name in headers
        ]
    if send_at:
        made.single_value_extended_properties = [
            SingleValueLegacyExtendedProperty(id="SystemTime 0x3FEF", value=send_at)
        ]
    body = SendMailPostRequestBody(message=made)
    if save is not None:
        body.save_to_sent_items = save
    return body


def file(name: str, content: bytes, *, content_type: str = "") -> FileAttachment:
    """An attached file; the SDK takes the bytes as they are and encodes them."""
    made = FileAttachment(name=name, content_bytes=content)
    if content_type:
        made.content_type = content_type
    return made


def upload_of(name: str, size: int) -> CreateUploadSessionPostRequestBody:
    item = AttachmentItem(attachment_type=AttachmentType.File, name=name, size=size)
    return CreateUploadSessionPostRequestBody(attachment_item=item)


def options(builder: Any, *, headers: dict[str, str] | None = None, **query: Any) -> Any:
    """Query options and headers for builder.get(): `top`, `filter`, `select` ..."""
    (kind,) = [
        getattr(type(builder), name)
        for name in dir(type(builder))
        if name.endswith("GetQueryParameters")
    ]
    made = RequestConfiguration(query_parameters=kind(**query))
    made.headers = collection(headers or {})
    return made


def collection(headers: dict[str, str]) -> HeadersCollection:
    made = HeadersCollection()
    for name, value in headers.items():
        made.add(name, value)
    return made


async def send_mime(client: GraphServiceClient, encoded: bytes) -> None:
    """POST MIME to sendMail: the SDK has no typed method for it."""
    request = client.me.send_mail.to_post_request_information(SendMailPostRequestBody())
    request.headers.clear()
    request.headers.add("Content-Type", "text/plain")
    request.content = encoded
    await client.request_adapter.send_no_response_content_async(request, ERRORS)


async def iterate(page: Any, client: GraphServiceClient) -> list[Any]:
    """All items of a list from `page` on, as PageIterator finds them."""
    found: list[Any] = []
    await PageIterator(page, client.request_adapter).iterate(lambda one: not found.append(one))
    return found


def seconds_from_now(seconds: int) -> str:
    time = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


async def raw(client: GraphServiceClient, method: Method, path: str) -> bytes:
    """The body of a response, as octets."""
    request = RequestInformation()
    request.http_method, request.url = method, client.request_adapter.base_url + path
    return await client.request_adapter.send_primitive_async(request, "bytes", ERRORS)


def batch(*requests: RequestInformation) -> BatchRequestContent:
    """The content of a batch; the SDK gives each request an id of its own."""
    content = BatchRequestContent()
    for one in requests:
        content.add_request_information(one)
    return content
