"""A program that sends mail, by Django and by Microsoft Graph. It knows nothing of Relay."""

import os
import secrets

from django.core.mail import EmailMultiAlternatives, send_mail


def send_login_code(address: str) -> str:
    """Send a code, and return it."""
    code = f"{secrets.randbelow(1_000_000):06}"
    send_mail("Your login code", f"Your code is {code}.", "shop@example.test", [address])
    return code


def send_invoice(address: str, number: int) -> None:
    """Send an invoice with HTML and an attachment."""
    link = f"https://shop.test/invoices/{number}"
    mail = EmailMultiAlternatives(
        f"Invoice {number}", f"See {link}", "shop@example.test", [address]
    )
    mail.attach_alternative(f'<a href="{link}">Invoice {number}</a>', "text/html")
    mail.attach(f"{number}.pdf", b"%PDF-1.7", "application/pdf")
    mail.send()


async def send_by_graph(subject: str, address: str) -> None:
    """Send a message with msgraph-sdk, to the service that the environment names."""
    from kiota_abstractions.authentication import (
        AccessTokenProvider,
        AllowedHostsValidator,
        BaseBearerTokenAuthenticationProvider,
    )
    from msgraph import GraphRequestAdapter, GraphServiceClient
    from msgraph.generated.models.body_type import BodyType
    from msgraph.generated.models.email_address import EmailAddress
    from msgraph.generated.models.item_body import ItemBody
    from msgraph.generated.models.message import Message
    from msgraph.generated.models.recipient import Recipient
    from msgraph.generated.users.item.send_mail.send_mail_post_request_body import (
        SendMailPostRequestBody,
    )

    class FromEnvironment(AccessTokenProvider):
        async def get_authorization_token(self, uri, additional_authentication_context=None):
            return os.environ["SHOP_TOKEN"]

        def get_allowed_hosts_validator(self):
            return AllowedHostsValidator([])

    adapter = GraphRequestAdapter(BaseBearerTokenAuthenticationProvider(FromEnvironment()))
    adapter.base_url = os.environ["SHOP_GRAPH"]
    message = Message(
        subject=subject,
        body=ItemBody(content_type=BodyType.Html, content="<p>Hello</p>"),
        to_recipients=[Recipient(email_address=EmailAddress(address=address))],
    )
    client = GraphServiceClient(request_adapter=adapter)
    await client.me.send_mail.post(SendMailPostRequestBody(message=message))
