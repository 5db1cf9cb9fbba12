"""What Graph has and Relay has not: it is a 501, while what neither has is a 404 or a 405.

The names and operations are those of v1.0, and of mail those of beta too. `routes` consults these
tables for what has no route.
"""

from collections.abc import Mapping

from msgspec import Struct

# Resources, actions and functions after /me and /users/{id}, with all that is below them.
_OF_USERS = """
    activities adhocCalls agreementAcceptances analytics appRoleAssignments assignLicense
    authentication calendar calendarGroups calendarView calendars changePassword chats
    checkMemberGroups checkMemberObjects cloudClipboard cloudPCs contactFolders contacts
    createdObjects dataSecurityAndGovernance deviceManagementTroubleshootingEvents directReports
    drive drives employeeExperience events exportDeviceAndAppManagementData exportPersonalData
    extensions findMeetingTimes findRoomLists findRooms followedSites getMailTips
    getManagedAppDiagnosticStatuses getManagedAppPolicies getManagedDevicesWithAppFailures
    getMemberGroups getMemberObjects inferenceClassification insights joinedGroups joinedTeams
    licenseDetails managedAppRegistrations managedDevices manager memberOf notes
    oauth2PermissionGrants onPremisesSyncBehavior onenote onlineMeetings outlook ownedDevices
    ownedObjects people permissionGrants photo photos planner presence profile registeredDevices
    reminderView removeAllDevicesFromManagement reprocessLicenseAssignment restore
    retryServiceProvisioning revokeSignInSessions scopedRoleMemberOf serviceProvisioningErrors
    settings solutions sponsorOf sponsors teamwork todo transitiveMemberOf
    wipeManagedAppRegistrationsByDeviceTag
"""
# The same at the top, after the version.
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


class UnsupportedOperation(Struct, frozen=True):
    """Operations of Graph on paths that match a pattern."""

    path: str  # the pattern, as those of `routes`
    methods: frozenset[str]  # empty: all
    what: str


def _operation(path: str, methods: str, what: str) -> UnsupportedOperation:
    return UnsupportedOperation(path, frozenset(methods.split()), what)


def _of_messages(prefix: str) -> tuple[UnsupportedOperation, ...]:
    one = f"{prefix}messages/{{message}}"
    return (
        _operation(f"{one}/$value", "DELETE", "Deleting the MIME of a message"),
        _operation(f"{one}/extensions/*", "", "The resource openTypeExtension"),
        _operation(f"{one}/mentions/*", "", "The resource mention"),
        _operation(f"{one}/markasjunk", "POST", "markAsJunk"),
        _operation(f"{one}/markasnotjunk", "POST", "markAsNotJunk"),
        _operation(f"{one}/unsubscribe", "POST", "unsubscribe"),
    )


_CHILDREN_DELTA = "A delta query of child folders"
OPERATIONS = (
    _operation("", "PATCH DELETE", "Changing users"),
    *_of_messages(""),
    *_of_messages("mailfolders/{folder}/"),
    _operation("mailfolders/{folder}/childfolders/delta", "GET", _CHILDREN_DELTA),
    _operation("mailfolders/{folder}/childfolders/delta()", "GET", _CHILDREN_DELTA),
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
)
OUTSIDE_MAILBOXES = (
    _operation("", "GET", "The service document"),
    _operation("users", "POST", "Creating users"),
    *(
        _operation(f"users/{name.lower()}", "GET", f"{name} of users")
        for name in ("$count", "delta", "delta()")
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
