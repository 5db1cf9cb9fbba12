"""JSON of messages and attachments: bodyPreview and the kinds of attachments."""

from relay.formats.html_text import preview
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
