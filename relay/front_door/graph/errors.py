"""The errors of the Graph API: status, code and Graph's sentence for each mistake.

Programs compare status, code and sentence. They are Graph's, in both profiles, wherever Graph's
documentation or a public report shows them. The `detail` of the ApiError says what was found and
what was expected. An error without a published sentence has Graph's status and code, and words of
Relay. In the sources, "docs" is Graph's documentation (learn.microsoft.com/graph), EWS the
ResponseCode of Exchange Web Services, whose texts Graph repeats, OData Microsoft's library, which
reads a request before Exchange does (odata.net, Microsoft.OData.Core.txt), and NAME#NUMBER a report
on GitHub.
"""

from collections.abc import Mapping
from functools import partial

from msgspec import Struct

from relay.front_door.http.errors import ApiError


class GraphError(Struct, frozen=True):
    """An error of Graph. {} in its sentence is a value of the request; "": no sentence is known."""

    status: int
    code: str
    sentence: str = ""

    def __call__(self, detail: str = "", *values: str, headers: Mapping[str, str] = {}) -> ApiError:
        """Return the error to raise; `values` are as the sentence has them, in quotes.

        `detail` is the message if there is no sentence.
        """
        message = self.sentence.format(*values) or detail
        detail = detail if self.sentence else ""
        return ApiError(self.status, self.code, message, headers=headers, detail=detail)


_400, _403, _404 = (partial(GraphError, status) for status in (400, 403, 404))
_409, _413, _416 = (partial(GraphError, status) for status in (409, 413, 416))
# -- what a path names

# msgraph-sdk-dotnet#2947
ITEM_NOT_FOUND = _404("ErrorItemNotFound", "The specified object was not found in the store.")
# of a message that is read: programs that quote it
MESSAGE_NOT_FOUND = _404(
    "ErrorItemNotFound",
    f"{ITEM_NOT_FOUND.sentence}, The process failed to get the correct properties.",
)
# microsoft-graph-docs-contrib#106
ID_MALFORMED = _400("ErrorInvalidIdMalformed", "Id is malformed.")
# OData, RequestUriProcessor_ResourceNotFound; programs quote either code
SEGMENT_NOT_FOUND = _400("BadRequest", "Resource not found for the segment {}.")
SEGMENT_BELOW_NOT_FOUND = _400("RequestBroker--ParseUri", SEGMENT_NOT_FOUND.sentence)
# aspnet-snippets-sample#25
USER_INVALID = _404("ErrorInvalidUser", "The requested user {} is invalid.")
# microsoft-graph-docs#6059
USER_NOT_FOUND = _404(
    "Request_ResourceNotFound",
    "Resource {} does not exist or one of its queried reference-property objects are not present.",
)
# docs, change notifications
SUBSCRIPTION_NOT_FOUND = _404("ResourceNotFound", "The object was not found.")
# docs, delta query
SYNC_STATE_NOT_FOUND = GraphError(410, "syncStateNotFound")
NOT_IMPLEMENTED = GraphError(501, "NotImplemented")

# -- rights

# EWS
ACCESS_DENIED = _403("ErrorAccessDenied", "Access is denied. Check credentials and try again.")
# docs, get a user
NO_USER = _400("BadRequest", "/me request is only valid with delegated authentication flow.")
# DeskDirector/UserVoice#379
SEND_AS_DENIED = _403(
    "ErrorSendAsDenied",
    "The user account which was used to submit this request does not have the right to send mail "
    "on behalf of the specified sending account., Cannot submit message.",
)

# -- query options

_NO_PROPERTY = "Could not find a property named {} on type 'microsoft.graph.{}'."
# docs, query parameters: a cast to a derived type
SELECT_UNKNOWN = _400("BadRequest", f"Parsing OData Select and Expand failed: {_NO_PROPERTY}")
PROPERTY_UNKNOWN = _400("BadRequest", _NO_PROPERTY)
# OData, ExpressionLexer_SyntaxError; programs quote the whole
FILTER_SYNTAX = _400("BadRequest", "Invalid filter clause: Syntax error at position {} in {}.")
# Azure/data-api-builder#844
FILTER_TYPES = _400(
    "BadRequest",
    "Invalid filter clause: A binary operator with incompatible types was detected. Found operand"
    " types '{}' and '{}' for operator kind '{}'.",
)
# OData, SkipTopLimitExceeded and SyntacticTree_Invalid…QueryOptionValue
TOP_EXCEEDED = _400(
    "BadRequest",
    "The limit of '{}' for Top query has been exceeded. The value from the incoming request is {}.",
)
NUMBER_INVALID = _400(
    "BadRequest",
    "Invalid value {0} for ${1} query option found. The ${1} query option requires a non-negative"
    " integer value.",
)
# programs that quote it
FILTER_UNSUPPORTED = _400(
    "ErrorInvalidUrlQueryFilter", "The query filter contains one or more invalid nodes."
)
ORDER_UNSUPPORTED = _400("ErrorInvalidUrlQuery")
# OData, ExpressionLexer_InvalidCharacter: msgraph-sdk-powershell#402
SEARCH_CHARACTER = _400(
    "BadRequest", "Syntax error: character {} is not valid at position {} in {}."
)

# -- bodies

# msgraph-sdk-javascript#404
UNREADABLE = _400("UnableToDeserializePostBody", "were unable to deserialize")
BODY_INVALID = _400("RequestBodyRead")
# OData: odata.net#1900, and Enum.Parse of .NET
LITERAL_INVALID = _400(
    "RequestBodyRead", "Cannot convert the literal {} to the expected type '{}'."
)
VALUE_UNKNOWN = _400("RequestBodyRead", "Requested value {} was not found.")
# OData, ODataParameterReaderCore
PARAMETER_UNKNOWN = _400(
    "RequestBodyRead",
    "The parameter {} in the request payload is not a valid parameter for the operation '{}'.",
)
PARAMETERS_MISSING = _400(
    "RequestBodyRead",
    "One or more parameters of the operation '{}' are missing from the request payload. The "
    "missing parameters are: {}.",
)
# msgraph-sdk-python#667
PROPERTY_MISSING = _400("ErrorRequiredPropertyMissing", "Required property is missing.")
# msgraph-sdk-python#440
TYPE_WITHOUT_PROPERTY = _400(
    "RequestBodyRead",
    "The property {} does not exist on type 'microsoft.graph.{}'. Make sure to only use property "
    "names that are defined by the type or mark the type as open type.",
)
# msgraph-sdk-android#72
ABSTRACT_TYPE = GraphError(
    422, "UnprocessableType", "Cannot process input of abstract type 'microsoft.graph.{}'."
)
INVALID_REQUEST = _400("ErrorInvalidRequest")
INVALID_ARGUMENT = _400("ErrorInvalidArgument")
# microsoft-graph-docs#4758
TIME_ZONE_UNKNOWN = _400(
    "TimeZoneNotSupportedException",
    "A valid TimeZone value must be specified. The following TimeZone value is not supported: {}.",
)
# microsoft-graph-docs-contrib#682
BODY_TOO_LARGE = _413("BadRequest", "The maximum request length supported is 4MB.")
CONTENT_TOO_LARGE = _413("RequestEntityTooLarge")
# docs, send mail in MIME
MIME_INVALID = _400("ErrorMimeContentInvalid", "Invalid MIME content.")
BASE64_INVALID = _400(
    "ErrorMimeContentInvalidBase64String", "Invalid base64 string for MIME content."
)

# -- messages

INVALID_RECIPIENTS = _400("ErrorInvalidRecipients", "At least one recipient is not valid.")
# msgraph-sdk-dotnet#1891
NO_RECIPIENTS = _400(
    "ErrorInvalidRecipients",
    f"{INVALID_RECIPIENTS.sentence}, A message can't be sent because it contains no recipients.",
)
# Azure/Microsoft365R#110
RECIPIENT_UNRESOLVED = _400(
    "ErrorInvalidRecipients",
    f"{INVALID_RECIPIENTS.sentence}, Recipient {{}} is not resolved. All recipients must be "
    "resolved before a message can be submitted.",
)
# microsoft-graph-docs#17008
NOT_A_DRAFT = _400("ErrorInvalidPropertySet", "Message is not draft.")
# msgraph-sdk-dotnet#2408
READ_ONLY = _400("ErrorInvalidPropertySet", "Set action is invalid for property.")
# msgraph-sdk-dotnet#2872
TOO_MANY_HEADERS = _400(
    "InvalidInternetMessageHeaderCollection",
    "Maximum number of headers in one message should be less than or equal to {}.",
)
# docs, custom headers
HEADER_INVALID = _400(
    "InvalidInternetMessageHeader",
    "The internet message header name {} should start with 'x-' or 'X-'.",
)
HEADER_RESERVED = _400(HEADER_INVALID.code)
# docs, large attachments
UPLOAD_TOO_SMALL = _400(
    "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize",
    "Attachment size must be greater than the minimum size.",
)
# microsoft-graph-docs-contrib#710
UPLOAD_OF_ITEM = GraphError(
    405,
    "ErrorAttachmentSessionIsSupportedOnlyForFileAttachments",
    "Unsupported Attachment type specified. Only File attachments can be uploaded using an Upload "
    "Session.",
)
RANGE_INVALID = _400("invalidRange")
RANGE_UNSATISFIABLE = _416("invalidRange")
RANGE_OVERLAP = _416("fragmentOverlap")
RANGE_OUT_OF_ORDER = _416("fragmentOutOfOrder")
# office365-mail#39; the status is RFC 9110's
TOO_LARGE = _413("ErrorMessageSizeExceeded", "The message exceeds the maximum supported size.")
# EWS
CHANGED = GraphError(
    412,
    "ErrorIrresolvableConflict",
    "The send or update operation could not be performed because the change key passed in the "
    "request does not match the current change key for the item.",
)
CONFLICT = _409("ErrorIrresolvableConflict")
MAILBOX_FULL = GraphError(507, "ErrorQuotaExceeded")
NO_RESOURCES = GraphError(507, "ErrorInsufficientResources")
INTERNAL = GraphError(500, "InternalServerError")
UNHEALTHY = GraphError(503, "ResourceUnhealthy")

# -- folders, subscriptions: EWS, docs

FOLDER_EXISTS = _409("ErrorFolderExists", "A folder with the specified name already exists.")
FOLDER_DELETED = _403("ErrorDeleteDistinguishedFolder", "Distinguished folders cannot be deleted.")
FOLDER_MOVED = _403("ErrorMoveDistinguishedFolder", "Distinguished folders cannot be moved.")
SUBSCRIPTION_INVALID = _400("ValidationError")
# microsoft-graph-docs#2751
URL_NOT_HTTPS = _400("InvalidRequest", "NotificationUrl scheme={} is not supported.")
# programs quote it; the documentation has 10,080
EXPIRES_TOO_LATE = _400(
    "ValidationError", "Subscription expiration can only be 10070 minutes in the future."
)

# -- limits

THROTTLED = GraphError(429, "ApplicationThrottled")
# msgraph-sdk-javascript#297
TOO_CONCURRENT = GraphError(
    429, "ApplicationThrottled", "Application is over its MailboxConcurrency limit."
)
# PipedreamHQ/pipedream#19132
SEARCH_WITH_FILTER = _400(
    "SearchWithFilter", "The query parameter '$filter' is not supported with '$search'."
)
SEARCH_WITH_ORDER = _400(
    "SearchWithOrderBy", "The query parameter '$orderBy' is not supported with '$search'."
)
# docs, list messages
TOO_COMPLEX = _400(
    "InefficientFilter", "The restriction or sort order is too complex for this operation."
)

# -- batches

# programs that quote it; docs, JSON batching
TOO_MANY_REQUESTS = _400(
    "MaximumValueExceeded", "Number of batch request steps exceeds the maximum value of 20."
)
# Softeria/ms-365-mcp-server#677
BATCH_WITHOUT_TYPE = _400(
    "BadRequest", "Write request with id {} does not contain a Content-Type header."
)
# msgraph-sdk-java#559
BATCH_ID_REPEATED = _400("BadRequest", "Request Id {} has to be unique in a batch.")
# msgraph-sdk-dotnet-core#891, which quotes only this much
BATCH_DEPENDENCY = _400("BadRequest", "Invalid dependency for request Id {}.")
FAILED_DEPENDENCY = GraphError(424, "FailedDependency")
RESPONSE_TOO_LARGE = _413("ResponseTooLarge")


def throttled(message: str, retry_after_s: int) -> ApiError:
    """Return the 429 for an account that has reached one of its limits."""
    return THROTTLED(message, headers={"retry-after": str(retry_after_s)})


def not_implemented(what: str) -> ApiError:
    """Return the 501 for a part of Graph that is not implemented."""
    return NOT_IMPLEMENTED(f"{what} is not implemented.")
