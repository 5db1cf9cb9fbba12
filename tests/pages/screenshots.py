"""`make screenshots`: the pictures of pages in docs/images, of a relay with mail in every state."""

import sys
import zlib
from base64 import b64decode

from tests.support.browser import Browser, missing_programs, running_browser
from tests.support.relay_process import ROOT
from tests.support.sample_mail import png, relay_with_samples

IMAGES = ROOT / "docs/images"
LARGEST, SHARP = 300_000, "--force-device-scale-factor=2"  # octets; also in frames
# By name: the page's path, or the message's subject, the width and the greatest height in pixels.
PICTURES = {
    "journey": ("Reminder", 1440, 900),
    "list": ("/", 1440, 600),
    "mail": ("Your order is on its way", 1440, 760),
    "bounce": ("Undeliverable: Invoice 1041", 1440, 760),
    "queue": ("/queue", 1440, 800),
    "internet": ("/internet", 1440, 900),
}


# The most frequent and strongest colours of a picture, and for each pixel the number of the one that is nearest.
WITH_A_PALETTE = """(async () => {
    const image = new Image();
    image.src = "data:image/png;base64,%s";
    await image.decode();
    const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
    context.drawImage(image, 0, 0);
    const data = new DataView(context.getImageData(0, 0, image.width, image.height).data.buffer);
    const colours = Array.from({length: data.byteLength / 4}, (_, n) => data.getUint32(4 * n) >>> 8);
    const counts = new Map();
    for (const one of colours) counts.set(one, (counts.get(one) ?? 0) + 1);
    const parts = (one) => [one >> 16, (one >> 8) & 255, one & 255];
    const strength = (one) => 16 + Math.max(...parts(one)) - Math.min(...parts(one));
    const weight = new Map([...counts].map(([one, count]) => [one, count * strength(one)]));
    const palette = [...counts.keys()].sort((a, b) => weight.get(b) - weight.get(a)).slice(0, 256);
    const distance = (a, b) => parts(a).reduce((sum, part, n) => sum + (part - parts(b)[n]) ** 2, 0);
    const nearest = new Map([...counts.keys()].map((one) => {
        const far = palette.map((other) => distance(one, other));
        return [one, far.indexOf(Math.min(...far))];
    }));
    return {width: image.width, height: image.height, palette: palette.map(parts),
            pixels: Uint8Array.from(colours, (one) => nearest.get(one)).toBase64()};
})()"""


def main() -> None:
    """Take all pictures. Raises AssertionError for one that is too large."""
    if missing := missing_programs():
        sys.exit(f"{missing} not installed: tests/system-packages.sh installs a browser")
    IMAGES.mkdir(exist_ok=True)
    with relay_with_samples() as samples, running_browser(SHARP) as browser:
        samples.relay.clock.advance(seconds=6)  # the second attempts of deferred mail
        browser.reset()
        browser.emulate_scheme("light")
        for name, (place, width, tallest) in PICTURES.items():
            browser.set_width(width, tallest)
            browser.open(samples.url(place))
            if not place.startswith("/"):
                browser.wait_for(".pane [aria-current]")  # the list beside it
            for preview in browser.driver.find_elements("css selector", ".stage iframe"):
                browser.driver.switch_to.frame(preview)
                browser.wait_for("body *")
                browser.driver.switch_to.default_content()
            picture = _png(browser, _screenshot(browser, width=width, tallest=tallest))
            assert len(picture) <= LARGEST, f"{name}.png: {len(picture)} bytes, limit {LARGEST}"
            (IMAGES / f"{name}.png").write_bytes(picture)
            print(f"docs/images/{name}.png: {len(picture)} bytes")


def _screenshot(browser: Browser, *, width: int, tallest: int) -> str:
    """Return the page down to its end or the greatest height, as PNG in base64."""
    end = browser.evaluate(
        "Math.max(...[...document.querySelectorAll('main > *')].map((one) => "
        "one.getBoundingClientRect().bottom)) + 24"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": min(int(end), tallest), "scale": 1}
    taken = browser.driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    return str(taken["data"])


def _png(browser: Browser, picture: str) -> bytes:
    """Return a picture as PNG of 256 colours (ISO/IEC 15948)."""
    browser.open("about:blank")
    found = browser.evaluate(WITH_A_PALETTE % picture)
    width, height, pixels = found["width"], found["height"], b64decode(found["pixels"])
    rows = b"".join(b"\0" + pixels[n * width : (n + 1) * width] for n in range(height))
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 3, 0, 0, 0])
    palette = bytes(part for colour in found["palette"] for part in colour)
    return png(IHDR=header, PLTE=palette, IDAT=zlib.compress(rows, 9), IEND=b"")


if __name__ == "__main__":
    main()
