"""The routes in a mailbox: from a path and method to a handler and what the request adds.

A path or method that Graph has and Relay has not is a 501. The tables have the names of v1.0, for
mail those of beta too. Any other path is a 400 that names the first unknown segment, as Graph has
it; any other method a 405 with Allow (RFC 9110 15.5.6). Names match in any case; the prefix
`microsoft.graph.` is accepted.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum, auto

from msgspec import Struct
from starlette.responses import Response

from relay.base.accounts.account import Scope
from relay.front_door.graph import (
    attachments,
    delta,
    errors,
    mail_folders,
    messages,
    replies,
    send_mail,
    subscriptions,
    users,
)
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.search_query import search_query
from relay.front_door.http.errors import ApiError, method_not_allowed, quoted

# Resources, actions and functions after /me and /users/{id}, with everything below them.
_OF_USERS = """
    activities adhocCalls agreementAcceptances analytics appRoleAssignments assignLicense
    authentication calendar calendarGroups calendarView calendars changePassword chats
    checkMemberGroups checkMemberObjects cloudClipboard cloudPCs contactFolders contacts
    createdObjects dataSecurityAndGovernance deviceManagementTroubleshootingEvents directReports
    drive drives employeeExperience events exportDeviceAndAppManagementData exportPersonalData
    extensions findMeetingTimes findRoomLists findRooms followedSites
    getManagedAppDiagnosticStatuses getManagedAppPolicies getManagedDevicesWithAppFailures
    getMailTips getMemberGroups getMemberObjects inferenceClassification insights joinedGroups
    joinedTeams licenseDetails managedAppRegistrations managedDevices manager memberOf notes
    oauth2PermissionGrants onPremisesSyncBehavior onenote onlineMeetings outlook ownedDevices
    ownedObjects people permissionGrants photo photos planner presence profile registeredDevices
    reminderView removeAllDevicesFromManagement reprocessLicenseAssignment restore
    retryServiceProvisioning revokeSignInSessions scopedRoleMemberOf serviceProvisioningErrors
    settings solutions sponsorOf sponsors teamwork todo transitiveMemberOf
    wipeManagedAppRegistrationsByDeviceTag
"""
# The same directly after the version.
_AT_TOP = """
    $metadata admin agreementAcceptances agreements appCatalogs applicationTemplates applications
    auditLogs authenticationMethodConfigurations authenticationMethodsPolicy
    certificateBasedAuthConfiguration chats communications compliance connections contacts contracts
    dataPolicyOperations deviceAppManagement deviceManagement devices directory directoryObjects
    directoryRoleTemplates directoryRoles domainDnsRecords domains drive drives education
    employeeExperience external filterOperators functions groupLifecyclePolicies
    groupSettingTemplates groupSettings groups identity identityGovernance identityProtection
    identityProviders informationProtection invitations oauth2PermissionGrants organization
    permissionGrants places planner policies print privacy reports roleManagement schemaExtensions
    scopedRoleMemberships search security servicePrincipals shares sites solutions storage
    subscribedSkus teams teamsTemplates teamwork tenantRelationships
"""
Handler = Callable[[GraphRequest], Awaitable[Response]]
_Routes = Sequence[tuple[tuple[str, ...], Mapping[str, "GraphOperation"]]]
_NAMESPACE = "microsoft.graph."
_OF_FUNCTION = re.compile(  # the parameters of a function in a path
    r"\((?:timezonestandard=microsoft\.graph\.timezonestandard'(?:windows|iana)')?\)$"
)
_ANY_REST = "*"  # at the end of a pattern: any number of segments


class UnsupportedOperation(Struct, frozen=True):
    """Operations of Graph on paths that match a pattern."""

    path: str  # the pattern, as in `routes`
    methods: frozenset[str]  # empty: all
    what: str


def _operation(path: str, methods: str, what: str) -> UnsupportedOperation:
    return UnsupportedOperation(path, frozenset(methods.split()), what)


def _of_messages(prefix: str) -> tuple[UnsupportedOperation, ...]:
    message = f"{prefix}messages/{{message}}"
    return (
        _operation(f"{message}/$value", "DELETE", "Deleting the MIME of a message"),
        _operation(f"{message}/extensions/*", "", "The resource openTypeExtension"),
        _operation(f"{message}/mentions/*", "", "The resource mention"),
        _operation(f"{message}/markasjunk", "POST", "markAsJunk"),
        _operation(f"{message}/markasnotjunk", "POST", "markAsNotJunk"),
        _operation(f"{message}/unsubscribe", "POST", "unsubscribe"),
        _operation(f"{message}/reportmessage", "POST", "reportMessage"),
    )


OPERATIONS = (
    _operation("", "PATCH DELETE", "Changing users"),
    _operation("outlook/mastercategories", "POST", "Creating categories"),
    *_of_messages(""),
    *_of_messages("mailfolders/{folder}/"),
    _operation("mailfolders/delta", "GET", "A delta query of folders"),
    _operation("mailfolders/{folder}/childfolders/delta", "GET", "A delta query of folders"),
    _operation(
        "mailfolders/{folder}/messagerules/*", "GET POST PATCH DELETE", "The resource messageRule"
    ),
    _operation(
        "inferenceclassification/overrides", "POST", "The resource inferenceClassificationOverride"
    ),
    _operation(
        "mailfolders/{folder}/updateallmessagesreadstate", "POST", "updateAllMessagesReadState"
    ),
    _operation("mailfolders/{folder}/userconfigurations/*", "", "The resource userConfiguration"),
    _operation("mailfolders/{folder}/operations/*", "GET", "The resource mailFolderOperation"),
)
OUTSIDE_MAILBOXES = (
    _operation("", "GET", "The service document"),
    _operation("users", "POST", "Creating users"),
    *(
        _operation(f"users/{name.lower()}", "GET", f"{name} of users")
        for name in ("$count", "delta")
    ),
    *(
        _operation(f"users/{name.lower()}", "POST", name)
        for name in ("getAvailableExtensionProperties", "getByIds", "validateProperties")
    ),
)


def _by_plain_name(names: str) -> Mapping[str, str]:
    return {name.lower(): name for name in names.split()}


RESOURCES_OF_USERS = _by_plain_name(_OF_USERS)
RESOURCES_AT_TOP = _by_plain_name(_AT_TOP)


class Intake(Enum):
    """What a request adds: a message to the queue, content to a mailbox, or neither."""

    NOTHING = auto()
    CONTENT = auto()
    MESSAGE = auto()


MAY_READ = (Scope.MAIL_READ, Scope.MAIL_READ_WRITE)
MAY_CHANGE = (Scope.MAIL_READ_WRITE,)
MAY_SEND = (Scope.MAIL_SEND,)
MAY_READ_USER = (Scope.USER_READ,)


class GraphOperation(Struct, frozen=True):
    """The operation of a path and method: its handler, what it adds, and the scopes.

    The caller must have one of the scopes. The first scope has the least rights.
    """

    handler: Handler
    scopes: tuple[Scope, ...]
    intake: Intake = Intake.NOTHING


def _reads(handler: Handler, scopes: tuple[Scope, ...] = MAY_READ) -> GraphOperation:
    return GraphOperation(handler, scopes)


def _changes(handler: Handler, scopes: tuple[Scope, ...] = MAY_CHANGE) -> GraphOperation:
    """Return the operation of a change that is possible under pressure: it reads mail or frees
    space.
    """
    return GraphOperation(handler, scopes)


def _adds(handler: Handler) -> GraphOperation:
    return GraphOperation(handler, MAY_CHANGE, Intake.CONTENT)


def _sends(handler: Handler) -> GraphOperation:
    return GraphOperation(handler, MAY_SEND, Intake.MESSAGE)


class RouteMatch(Struct, frozen=True):
    """The operation, and the values of the {parameters} in its path."""

    operation: GraphOperation
    path_parameters: Mapping[str, str]


def find_route(method: str, segments: tuple[str, ...]) -> RouteMatch:
    """Return the operation of `method` on the path after a user. Raises ApiError 400, 405, 501."""
    segments = _innermost_folder(segments)
    for pattern, by_method in _ROUTES:
        parameters = _match(pattern, segments)
        if parameters is None:
            continue
        if (operation := by_method.get(method)) is None:
            _check_operations(method, segments, OPERATIONS)
            raise method_not_allowed(by_method)
        return RouteMatch(operation, parameters)
    _check_operations(method, segments, OPERATIONS)
    _check_resources(segments, RESOURCES_OF_USERS)
    raise _not_found(segments, _ROUTES)


def find_route_outside(method: str, segments: tuple[str, ...]) -> RouteMatch | None:
    """Return the operation on a path in no mailbox; None for a path after /me or /users/{address}.

    Raises ApiError 404, 405, 501.
    """
    first = segments[0].lower() if segments else ""
    by_method: Mapping[str, GraphOperation] | None = None
    for pattern, operations in _OUTSIDE:
        if (parameters := _match(pattern, segments)) is not None:
            if (operation := operations.get(method)) is not None:
                return RouteMatch(operation, parameters)
            by_method = operations
    if first == "me":
        return None
    _check_operations(method, segments, OUTSIDE_MAILBOXES)
    if by_method is not None:
        raise method_not_allowed(by_method)
    _check_resources(segments, RESOURCES_AT_TOP)
    if first == "users":
        return None
    raise _not_found(segments, ())


def _check_operations(
    method: str, segments: tuple[str, ...], operations: Iterable[UnsupportedOperation]
) -> None:
    """Raise the 501 if Graph has `method` on the path."""
    for operation in operations:
        if operation.methods and method not in operation.methods:
            continue
        if _match(_pattern_of(operation.path), segments) is not None:
            raise errors.not_implemented(operation.what)


def _check_resources(segments: tuple[str, ...], names: Mapping[str, str]) -> None:
    """Raise the 501 if Graph has the resource."""
    # A function's parameters and an alternate key, as in applications(appId='1'), are not in it.
    name = _plain_name(segments[0]).partition("(")[0] if segments else ""
    if name in names:
        raise errors.not_implemented(f"The resource {names[name]}")


def _not_found(segments: tuple[str, ...], routes: _Routes) -> ApiError:
    """Return the 400 that names the first segment that no route has."""
    depth = 0
    while any(
        _match(pattern[: depth + 1], segments[: depth + 1]) is not None for pattern, _ in routes
    ):
        depth += 1
    error = errors.SEGMENT_BELOW_NOT_FOUND if depth else errors.SEGMENT_NOT_FOUND
    detail = f"There is nothing at {quoted('/'.join(segments))}; mail is under /me and /users/."
    return error(detail, quoted("/".join(segments[depth : depth + 1])))


def _plain_name(segment: str) -> str:
    """Return the name of a resource, action or function as patterns have it."""
    return _OF_FUNCTION.sub("", segment.lower().removeprefix(_NAMESPACE))


def _innermost_folder(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the parent folders from mailFolders/{id}/childFolders/{id}: an id is enough."""
    while len(segments) > 3 and segments[0].lower() == "mailfolders":
        if segments[2].lower() != "childfolders" or _is_function(segments[3]):
            break
        segments = (segments[0], *segments[3:])
    return segments


def _is_function(segment: str) -> bool:
    """Return whether a path segment after a collection's name is no id."""
    return _plain_name(segment) in ("$count", "delta")


def _pattern_of(path: str) -> tuple[str, ...]:
    """Return the pattern that is written as `path`."""
    return tuple(path.split("/")) if path else ()


def _match(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    """Return the path parameters if `segments` match `pattern`, else None."""
    if pattern[-1:] == (_ANY_REST,):
        pattern = pattern[:-1]
        segments = segments[: len(pattern)]
    if len(pattern) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            if segment.startswith("$") or _is_function(segment):  # $value is no id either
                return None
            parameters[expected[1:-1]] = segment
        elif _plain_name(segment) != expected:
            return None
    return parameters


def _routes(operations: Mapping[str, GraphOperation], *, prefix: str = "") -> _Routes:
    """Return the operations by pattern and method; their names are "METHOD path"."""
    routes: dict[tuple[str, ...], dict[str, GraphOperation]] = {}
    for name, operation in operations.items():
        method, _, path = name.partition(" ")
        routes.setdefault(_pattern_of(prefix + path), {})[method] = operation
    return tuple(routes.items())


_OUTSIDE = _routes(
    {
        "GET users": _reads(users.list_users, MAY_READ_USER),
        "POST search/query": _reads(search_query),
        "GET subscriptions": _reads(subscriptions.list_subscriptions),
        "POST subscriptions": _reads(subscriptions.create_subscription),
        "GET subscriptions/{subscription}": _reads(subscriptions.get_subscription),
        "PATCH subscriptions/{subscription}": _reads(subscriptions.change_subscription),
        "DELETE subscriptions/{subscription}": _reads(subscriptions.delete_subscription),
        "POST subscriptions/{subscription}/reauthorize": _reads(subscriptions.reauthorize),
    }
)
_MESSAGE_OPERATIONS: Mapping[str, GraphOperation] = {
    "GET messages": _reads(messages.list_messages),
    "POST messages": _adds(messages.create_message),
    "GET messages/$count": _reads(messages.count_messages),
    "GET messages/delta": _reads(delta.list_message_changes),
    "GET messages/{message}": _reads(messages.get_message),
    "PATCH messages/{message}": _changes(messages.change_message),
    "DELETE messages/{message}": _changes(messages.delete_message),
    "POST messages/{message}/send": _sends(send_mail.send_draft),
    "POST messages/{message}/reply": _sends(replies.reply),
    "POST messages/{message}/replyall": _sends(replies.reply_all),
    "POST messages/{message}/forward": _sends(replies.forward),
    "POST messages/{message}/createreply": _adds(replies.create_reply),
    "POST messages/{message}/createreplyall": _adds(replies.create_reply_all),
    "POST messages/{message}/createforward": _adds(replies.create_forward),
    "POST messages/{message}/move": _changes(messages.move_message),
    "POST messages/{message}/copy": _adds(messages.copy_message),
    "POST messages/{message}/permanentdelete": _changes(messages.remove_message),
    "GET messages/{message}/attachments": _reads(attachments.list_attachments),
    "POST messages/{message}/attachments": _adds(attachments.add_attachment),
    "POST messages/{message}/attachments/createuploadsession": _adds(
        attachments.create_upload_session
    ),
    "GET messages/{message}/attachments/$count": _reads(attachments.count_attachments),
    "GET messages/{message}/attachments/{attachment}": _reads(attachments.get_attachment),
    "DELETE messages/{message}/attachments/{attachment}": _changes(attachments.delete_attachment),
    "GET messages/{message}/attachments/{attachment}/$value": _reads(attachments.get_value),
    "GET messages/{message}/$value": _reads(messages.get_mime),
    "PUT messages/{message}/$value": _adds(messages.replace_mime),
}
_FOLDER_OPERATIONS: Mapping[str, GraphOperation] = {
    "GET mailfolders": _reads(mail_folders.list_folders),
    "POST mailfolders": _changes(mail_folders.create_folder),
    "GET mailfolders/$count": _reads(mail_folders.count_folders),
    "GET mailfolders/{folder}": _reads(mail_folders.get_folder),
    "PATCH mailfolders/{folder}": _changes(mail_folders.change_folder),
    "DELETE mailfolders/{folder}": _changes(mail_folders.delete_folder),
    "GET mailfolders/{folder}/childfolders": _reads(mail_folders.list_folders),
    "POST mailfolders/{folder}/childfolders": _changes(mail_folders.create_folder),
    "GET mailfolders/{folder}/childfolders/$count": _reads(mail_folders.count_folders),
    "POST mailfolders/{folder}/move": _changes(mail_folders.move_folder),
    "POST mailfolders/{folder}/copy": _adds(mail_folders.copy_folder),
    "POST mailfolders/{folder}/permanentdelete": _changes(mail_folders.remove_folder),
}
_MAILBOX_OPERATIONS: Mapping[str, GraphOperation] = {
    "GET": _reads(users.get_user, MAY_READ_USER),
    "POST sendmail": _sends(send_mail.send_mail),
    "POST translateexchangeids": _reads(users.translate_ids, (Scope.USER_READ, *MAY_READ)),
    "GET mailboxsettings": _reads(users.get_settings, users.MAY_READ),
    "PATCH mailboxsettings": _changes(users.change_settings, users.MAY_CHANGE),
    "GET inferenceclassification/overrides": _reads(users.list_overrides),
    "GET outlook/mastercategories": _reads(users.list_categories, users.MAY_READ),
    "GET mailfolders/{folder}/messagerules": _reads(mail_folders.list_rules),
    "GET outlook/supportedtimezones": _reads(users.list_time_zones, MAY_READ_USER),
    "GET mailboxsettings/{setting}": _reads(users.get_setting, users.MAY_READ),
}
_ROUTES = (
    *_routes(_MAILBOX_OPERATIONS),
    *_routes(_MESSAGE_OPERATIONS),
    *_routes(_FOLDER_OPERATIONS),
    *_routes(_MESSAGE_OPERATIONS, prefix="mailfolders/{folder}/"),
)
