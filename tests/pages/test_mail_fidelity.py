"""The frame of a mail looks as Chromium shows the mail itself: forty templates of four kits."""

import pytest

from relay.front_door.pages.content_pages import HTML_HEADERS
from relay.front_door.pages.sanitize import safe_document
from tests.support.browser import Browser
from tests.support.in_thread import Answer, http_origin
from tests.support.long_tests import sampled
from tests.support.mail_templates import TEMPLATES

DIFFERENCE = """Promise.all([%r, %r].map(async (png) => {
  const bitmap = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob());
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  canvas.drawImage(bitmap, 0, 0);
  return canvas.getImageData(0, 0, bitmap.width, bitmap.height).data;
})).then(([a, b]) => {
  let different = 0;
  for (let i = 0; i < a.length; i += 4)
    different += Math.abs(a[i] - b[i]) + Math.abs(a[i+1] - b[i+1]) + Math.abs(a[i+2] - b[i+2]) > 24;
  return a.length === b.length ? different * 4 / a.length : 1;
})"""


@pytest.mark.parametrize("name", sampled(TEMPLATES, one_of=7))
def test_a_template_looks_as_the_mail_itself(browser: Browser, name: str):
    raw = TEMPLATES[name]
    found = safe_document(raw, lambda _: None)
    shown = {
        "/raw": (raw, {"content-type": "text/html; charset=utf-8"}),
        "/": (found.html, HTML_HEADERS),
    }

    def answer(path: str, _: object) -> Answer:
        html, headers = shown.get(path, ("", {}))
        return 200, headers, html.encode()

    with http_origin(answer) as origin:
        for width in (600, 375):
            browser.set_width(width)
            pictures = []
            for path in shown:
                browser.open(f"{origin}{path}")
                pictures.append(browser.driver.get_screenshot_as_base64())
            browser.open("about:blank")
            difference = browser.evaluate(DIFFERENCE % tuple(pictures))
            assert difference < 0.02, width
    assert (found.left_out_declarations, found.left_out_elements) == (0, 0)
