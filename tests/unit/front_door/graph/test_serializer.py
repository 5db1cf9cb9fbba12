"""JSON of messages and attachments: bodyPreview and the kinds of attachments."""

from relay.formats.html_text import preview
from relay.formats.read_mime import AttachmentFacts
from relay.front_door.graph.attachments import attachment_json
from tests.support.tables import each_row


@each_row(
    "text, body_type, shown",
    [
        ("a\r\n\t b", "text", "a b"),
        ("<b>not html</b>", "text", "<b>not html</b>"),
        ("<html><head><title>t</title></head><body>a<br>b &amp; c</body>", "html", "a b & c"),
        ("<style type='x'>p { }</style>x<script>y</script >z", "html", "x z"),
        ("a < b and more", "html", "a < b and more"),
        ("<script>never closed", "html", ""),
        ("x" * 300, "text", "x" * 255),
        ("", "html", ""),
    ],
)
def test_preview(text: str, body_type: str, shown: str) -> None:
    assert preview(text, body_type) == shown


def test_preview_of_a_hostile_body_is_one_pass() -> None:
    assert preview("<" * 10_000_000, "html") == "<" * 255


def test_attachments_are_shown_by_their_kind() -> None:
    file = AttachmentFacts("a.png", "image/png", 5, inline=True, content_id="c@a.test", id="0")
    shown = attachment_json(file, modified_us=1_700_000_000_000_000)
    assert shown == {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "@odata.mediaContentType": "image/png",
        "id": "0",
        "lastModifiedDateTime": "2023-11-14T22:13:20Z",
        "name": "a.png",
        "contentType": "image/png",
        "size": 5,
        "isInline": True,
        "contentId": "c@a.test",
        "contentLocation": None,
    }
    message = AttachmentFacts("m", "message/rfc822", 9, inline=False, item=True, id="1")
    shown = attachment_json(message, modified_us=0, item={"subject": "s"})
    assert shown["@odata.type"] == "#microsoft.graph.itemAttachment"
    assert shown["item"] == {"subject": "s"}
    assert "contentBytes" not in shown
