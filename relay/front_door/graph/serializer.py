"""JSON of the message, mailFolder and user resources: one table of properties each.

Enumerations are in lower camel case and dates in UTC with Z, as strict clients require.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from relay.base.accounts.account import Account
from relay.base.clock import rfc3339
from relay.base.message.conversation import conversation_id
from relay.base.message.properties import EmailAddress
from relay.base.phrases import words_in
from relay.formats.html_text import preview
from relay.formats.quoting import unique_body
from relay.formats.read_mime import ReadExtent
from relay.front_door.graph.follow_up_flags import flag_json
from relay.store.mailbox.stored_message import Folder, StoredMessage

ROOT_FOLDER_ID = "msgfolderroot"


def message_json(
    message: StoredMessage,
    select: Collection[str] = (),
    *,
    pages_url: str = "",
    shown_id: Callable[[str, str], str] | None = None,
) -> dict[str, Any]:
    """Return a message's JSON; with `select` only these properties, the id and the etag.

    `pages_url` is the base URL of the pages, "" if there are none. `shown_id` is
    GraphRequest.shown_id; without it, the id is the store's.
    """
    names = (*_ALWAYS, *select) if select else _BY_DEFAULT
    resource = {name: MESSAGE_PROPERTIES[name](message) for name in names}
    if pages_url and message.page_id and "webLink" in resource:
        resource["webLink"] = f"{pages_url}/messages/{message.page_id}"
    if shown_id is not None:
        resource["id"] = shown_id(message.id, message.folder.id)
    return {name: value for name, value in resource.items() if value is not None}


def extent_of(select: Collection[str], *, is_expanded: bool = False) -> ReadExtent:
    """Return which parts of a message must be read for the JSON with these properties.

    With `is_expanded`, extended properties may show addresses too.
    """
    names = select or _BY_DEFAULT
    return ReadExtent(
        has_body=not _OF_BODY.isdisjoint(names),
        has_addresses=is_expanded or not _OF_ADDRESSES.isdisjoint(names),
        has_fields=_FIELDS in names,
    )


def folder_json(
    folder: Folder, select: Collection[str] = (), *, is_beta: bool = False
) -> dict[str, Any]:
    """Return a mail folder's JSON."""
    by_default = _FOLDER_IN_BETA if is_beta else _FOLDER_BY_DEFAULT
    names = ("id", *select) if select else by_default
    return {name: FOLDER_PROPERTIES[name](folder) for name in names}


def folder_version(folder: Folder) -> str:
    """Return a text that changes with a folder's name, place and counts: the key of its ETag."""
    facts = (folder.id, folder.display_name, folder.parent_id, folder.children)
    counts = (folder.unread, folder.total, folder.size_bytes)
    return hashlib.sha256(repr((facts, counts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def user_json(account: Account, select: Collection[str] = ()) -> dict[str, Any]:
    """Return a user's JSON; with `select` only these properties and the id."""
    names = ("id", *select) if select else _USER_BY_DEFAULT
    return {name: USER_PROPERTIES[name](account) for name in names}


def graph_date(time_us: int) -> str:
    """Return a DateTimeOffset with seconds."""
    return rfc3339(time_us)[:19] + "Z"


def _conversation_id(message: StoredMessage) -> str:
    own = message.properties.internet_message_id or message.id
    return conversation_id(message.properties, own)


def _recipient(recipient: EmailAddress) -> dict[str, Any]:
    return {
        "emailAddress": {"name": recipient.name or recipient.address, "address": recipient.address}
    }


def _recipients(recipients: tuple[EmailAddress, ...]) -> list[dict[str, Any]]:
    return [_recipient(recipient) for recipient in recipients]


def _originator(originator: EmailAddress | None) -> dict[str, Any] | None:
    return None if originator is None else _recipient(originator)


def _date(field: str) -> Callable[[StoredMessage], str]:
    return lambda message: graph_date(getattr(message, field))


def _headers(message: StoredMessage) -> list[dict[str, str]]:
    headers = message.properties.internet_message_headers
    return [{"name": name, "value": value} for name, value in headers]


def _body(message: StoredMessage, content: str) -> dict[str, str]:
    return {"contentType": message.properties.body_type, "content": content}


def _unique_body(message: StoredMessage) -> dict[str, str]:
    properties = message.properties
    return _body(message, unique_body(properties.body, properties.body_type))


MESSAGE_PROPERTIES: Mapping[str, Callable[[StoredMessage], Any]] = {
    "@odata.etag": lambda message: f'W/"{message.change_key}"' if message.change_key else None,
    "id": lambda message: message.id,
    "createdDateTime": _date("created_us"),
    "lastModifiedDateTime": _date("modified_us"),
    "changeKey": lambda message: message.change_key or None,
    "categories": lambda message: list(message.properties.categories),
    "receivedDateTime": _date("received_us"),
    "sentDateTime": _date("sent_us"),
    "hasAttachments": lambda message: any(not file.inline for file in message.attachments),
    "internetMessageId": lambda message: message.properties.internet_message_id,
    "subject": lambda message: message.properties.subject,
    "bodyPreview": lambda message: preview(message.properties.body, message.properties.body_type),
    "importance": lambda message: message.properties.importance,
    "parentFolderId": lambda message: message.folder.id or None,
    "conversationId": _conversation_id,
    "conversationIndex": lambda message: message.properties.conversation_index or None,
    "isDeliveryReceiptRequested": lambda message: message.properties.delivery_receipt,
    "isReadReceiptRequested": lambda message: message.properties.read_receipt,
    "isRead": lambda message: message.is_read,
    "isDraft": lambda message: message.is_draft,
    "body": lambda message: _body(message, message.properties.body),
    "sender": lambda message: _originator(message.properties.sender or message.properties.from_),
    "from": lambda message: _originator(message.properties.from_),
    "toRecipients": lambda message: _recipients(message.properties.to),
    "ccRecipients": lambda message: _recipients(message.properties.cc),
    "bccRecipients": lambda message: _recipients(message.properties.bcc),
    "replyTo": lambda message: _recipients(message.properties.reply_to),
    "flag": lambda message: flag_json(message.flag),
    "sensitivity": lambda message: message.properties.sensitivity,
    "internetMessageHeaders": _headers,
    "inferenceClassification": lambda message: "other" if message.is_other else "focused",
    "uniqueBody": _unique_body,
    "webLink": lambda _: None,  # see message_json()
    "attachments": lambda _: None,  # $expand shows them
}
_OF_BODY = frozenset(("body", "bodyPreview", "uniqueBody"))
_OF_ADDRESSES = frozenset(
    words_in("sender from toRecipients ccRecipients bccRecipients replyTo isReadReceiptRequested")
)
_FIELDS = "internetMessageHeaders"
_ALWAYS = ("@odata.etag", "id")
_ON_SELECT = (_FIELDS, "sensitivity", "uniqueBody", "attachments")
_BY_DEFAULT = tuple(name for name in MESSAGE_PROPERTIES if name not in _ON_SELECT)

FOLDER_PROPERTIES: Mapping[str, Callable[[Folder], Any]] = {
    "id": lambda folder: folder.id,
    "displayName": lambda folder: folder.display_name,
    "parentFolderId": lambda folder: folder.parent_id or ROOT_FOLDER_ID,
    "childFolderCount": lambda folder: folder.children,
    "unreadItemCount": lambda folder: folder.unread,
    "totalItemCount": lambda folder: folder.total,
    "isHidden": lambda _: False,
    # not by default
    "sizeInBytes": lambda folder: folder.size_bytes,
    "wellKnownName": lambda folder: folder.well_known,
}
# Properties that Graph has only in /beta, by type.
OF_BETA: Mapping[str, tuple[str, ...]] = {"mailFolder": ("wellKnownName",)}
_FOLDER_BY_DEFAULT = tuple(FOLDER_PROPERTIES)[:7]
_FOLDER_IN_BETA = (*_FOLDER_BY_DEFAULT, *OF_BETA["mailFolder"])


def _proxy_addresses(account: Account) -> list[str]:
    """Return the addresses as Exchange lists them: SMTP in capitals is the primary one."""
    return [f"SMTP:{account.address}", *(f"smtp:{alias}" for alias in account.aliases)]


USER_PROPERTIES: Mapping[str, Callable[[Account], Any]] = {
    "businessPhones": lambda _: [],
    "displayName": lambda account: account.display_name,
    "givenName": lambda _: None,
    "id": lambda account: account.address,
    "jobTitle": lambda _: None,
    "mail": lambda account: account.address,
    "mobilePhone": lambda _: None,
    "officeLocation": lambda _: None,
    "preferredLanguage": lambda _: None,
    "surname": lambda _: None,
    "userPrincipalName": lambda account: account.address,
    "accountEnabled": lambda _: True,
    "mailNickname": lambda account: account.display_name,
    "proxyAddresses": _proxy_addresses,
    "userType": lambda _: "Member",
    **dict.fromkeys(
        words_in(
            "assignedLicenses assignedPlans identities imAddresses interests "
            "licenseAssignmentStates onPremisesProvisioningErrors otherMails pastProjects "
            "provisionedPlans responsibilities schools serviceProvisioningErrors skills"
        ),
        lambda _: [],
    ),
    # Graph's other properties of a user: clients select them, and Relay has no value.
    **dict.fromkeys(
        words_in(
            "aboutMe ageGroup authorizationInfo birthday city companyName consentProvidedForMinor "
            "country createdDateTime creationType customSecurityAttributes deletedDateTime "
            "department deviceEnrollmentLimit employeeHireDate employeeId employeeLeaveDateTime "
            "employeeOrgData employeeType externalUserState externalUserStateChangeDateTime "
            "faxNumber hireDate isManagementRestricted isResourceAccount "
            "lastPasswordChangeDateTime legalAgeGroupClassification mailboxSettings mySite "
            "onPremisesDistinguishedName onPremisesDomainName onPremisesExtensionAttributes "
            "onPremisesImmutableId onPremisesLastSyncDateTime onPremisesSamAccountName "
            "onPremisesSecurityIdentifier onPremisesSyncEnabled onPremisesUserPrincipalName "
            "passwordPolicies passwordProfile postalCode preferredDataLocation preferredName print "
            "refreshTokensValidFromDateTime securityIdentifier showInAddressList signInActivity "
            "signInSessionsValidFromDateTime state streetAddress usageLocation"
        ),
        lambda _: None,
    ),
}
_USER_BY_DEFAULT = tuple(USER_PROPERTIES)[:11]
