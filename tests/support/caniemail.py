"""Reduce the data of caniemail to what Relay's HTML check reads: relay/formats/caniemail.json.

    npm pack caniemail@2.0.2 && tar xzf caniemail-2.0.2.tgz
    .venv/bin/python -m tests.support.caniemail package

Of each feature: its title, the names by which relay/formats/body_checks.py finds it in a message,
the newest known support of each program (y, a: partly, n, u: not known), and the notes of those
that do not support all of it. Features that cannot be seen in HTML or CSS are left out.
"""

import json
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

TARGET = Path(__file__).parents[2] / "relay/formats/caniemail.json"
TESTED_MIN = 20  # features; programs that were tested with fewer are left out
SIDES = ("top", "right", "bottom", "left")

# Features whose names do not follow from the title.
NAMES = {
    "css-at-media-hover": ["@media hover", "@media any-hover"],
    "css-at-media-device-pixel-ratio": [
        f"@media -webkit-{each}device-pixel-ratio" for each in ("", "min-", "max-")
    ],
    "css-block-inline-size": ["block-size"],
    "css-border-inline-block": ["border-inline", "border-block"],
    "css-border-radius-logical": [
        f"border-{block}-{inline}-radius"
        for block in ("start", "end")
        for inline in ("start", "end")
    ],
    "css-color-scheme": ["color-scheme"],
    "css-column-layout-properties": None,
    "css-font": ["font"],
    "css-function-light-dark": ["light-dark()"],
    "css-gap": ["gap", "column-gap", "row-gap"],
    "css-height": ["height"],
    "css-important": ["!important"],
    "css-inline-size": ["inline-size"],
    "css-inset": None,
    "css-intrinsic-size": ["value fit-content", "value min-content", "value max-content"],
    "css-left-right-top-bottom": [f"{side}" for side in SIDES],
    "css-margin": ["margin", *(f"margin-{side}" for side in SIDES)],
    "css-max-height": ["max-height"],
    "css-min-height": ["min-height"],
    "css-min-width": ["min-width"],
    "css-modern-color": [f"{each}()" for each in ("lch", "oklch", "lab", "oklab")],
    "css-nesting": ["selector nesting"],
    "css-padding": ["padding", *(f"padding-{side}" for side in SIDES)],
    "css-pseudo-class-lang": [":lang"],
    "css-scroll-snap": ["scroll-snap-type", "scroll-snap-align", "scroll-snap-stop"],
    "css-sytem-ui": [
        f"value {each}"
        for each in ("system-ui", "ui-serif", "ui-sans-serif", "ui-rounded", "ui-monospace")
    ],
    "css-unit-calc": ["calc()"],
    "css-unit-initial": ["value initial"],
    "css-variables": ["--*", "var()"],
    "css-width": ["width"],
    "html-address": ["<address>"],
    "html-anchor-links": ["link #"],
    "html-base": ["<base>"],
    "html-h1-h6": [f"<h{level}>" for level in range(1, 7)],
    "html-image-maps": ["<map>", "<area>", "usemap="],
    "html-lists": [f"<{each}>" for each in ("ul", "ol", "dl")],
    "html-loading-attribute": ["loading="],
    "html-mailto-links": ["link mailto"],
    "html-meta-color-scheme": ["<meta color-scheme>"],
    "html-object": ["<object>", "<embed>"],
    "html-srcset": ["srcset="],
    "html-svg": ["<svg>"],
    "image-base64": ["image base64"],
    "image-jpg": ["image jpg", "image jpeg"],
    "image-heif": ["image heif", "image heic"],
    "image-tiff": ["image tiff", "image tif"],
}
# Those whose names are all of their keywords, or those that begin like the title.
KEYWORDS = {
    "css-border",
    "css-border-inline-block-individual",
    "css-border-inline-block-longhand",
    "css-column-layout-properties",
    "css-grid-template",
    "css-inset",
    "css-overflow",
}
SELECTORS = {
    "css-selector-adjacent-sibling": "adjacent",
    "css-selector-attribute": "attribute",
    "css-selector-chaining": "chaining",
    "css-selector-child": "child",
    "css-selector-class": "class",
    "css-selector-descendant": "descendant",
    "css-selector-general-sibling": "sibling",
    "css-selector-grouping": "grouping",
    "css-selector-id": "id",
    "css-selector-type": "type",
    "css-selector-universal": "*",
}
IMAGES = {"apng", "avif", "bmp", "gif", "ico", "png", "svg", "webp", "mp4"}
# A form for each kind of title, with what is found by it.
TITLES = (
    (r'<(input|button) type="([a-z]+)"> element', "<{0} {1}>"),
    (r"<([a-z0-9]+)> element", "<{0}>"),
    (r"([a-z-]+) attribute", "{0}="),
    (r"@media \(([a-z-]+)\)", "@media {0}"),
    (r"@([a-z-]+)", "@{0}"),
    (r"::([a-z-]+)", "::{0}"),
    (r":([a-z-]+)(?:\(\))?", ":{0}"),
    (r"([a-z-]+)\(\)", "{0}()"),
    (r"(%|[a-z]+) unit", "1{0}"),
    (r"([a-z-]+): ?([a-z-]+)", "{0}: {1}"),
    (r"([a-z-]+) & ([a-z-]+)", "{0}|{1}"),
    (r"([a-z]+(?:-[a-z]+)*)", "{0}"),
)
SKIPPED = {"css-comments", "css-inert-attribute", "html-comments", "html-doctype", "image-hdr"}


def names_of(feature: dict) -> list[str]:
    """Return the names of a feature, none for one that is not looked for."""
    slug, keywords = feature["slug"], (feature["keywords"] or "").replace(" ", "").split(",")
    if feature["category"] == "others" or slug in SKIPPED:
        return []
    if names := NAMES.get(slug):
        return names
    if slug in KEYWORDS:
        title = feature["title"] if re.fullmatch("[a-z-]+", feature["title"]) else ""
        found = [title, *(each for each in keywords if "-" in each or each == "columns")]
        return [f"{each}" for each in dict.fromkeys(filter(None, found))]
    if slug in SELECTORS:
        return [f"selector {SELECTORS[slug]}"]
    if feature["category"] == "image":
        return [f"image {each}" for each in (slug.removeprefix("image-"),) if each in IMAGES]
    if slug == "html-semantics":
        return [f"<{each}>" for each in keywords]
    for pattern, form in TITLES:
        if found := re.fullmatch(pattern, feature["title"].strip()):
            return form.format(*found.groups()).split("|")
    return []


def reduced(data: dict, licence: str) -> dict:
    """Return what Relay keeps."""
    words, features, notes = data["nicenames"], {}, {}
    tested = Counter(
        (family, each)
        for one in data["data"]
        for family, platforms in one["stats"].items()
        for each in platforms
    )
    programs = sorted(each for each, count in tested.items() if count >= TESTED_MIN)
    for one in data["data"]:
        names = names_of(one)
        if not names:
            print("not looked for:", one["slug"], one["title"], file=sys.stderr)
            continue
        support, said = "", {}
        for family, platform in programs:
            versions = one["stats"].get(family, {}).get(platform, {})
            newest, *numbers = (list(versions.values()) or ["u"])[-1].split()
            support += newest
            for number in numbers if newest in "an" else ():
                note = (one["notes_by_num"] or {}).get(number.strip("#"), "")
                if note := re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", note).strip():
                    said.setdefault(notes.setdefault(note, len(notes)))
        title = one["title"].strip()
        features[one["slug"]] = ["" if title == names[0] else title, names, support, list(said)]
    return {
        "source": "npm caniemail 2.0.2, data/caniemail.json, from www.caniemail.com",
        "licence": licence,
        "date": data["last_update_date"][:10],
        "programs": [
            f"{words['family'][family]} {words['platform'][each]}".replace(
                "Outlook Outlook", "Outlook"
            )
            for family, each in programs
        ],
        "notes": list(notes),
        "features": features,
    }


def written(kept: dict) -> str:
    """Return the data as JSON, with a line for each feature."""
    dump = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
    features = kept.pop("features")
    head = [f"{dump(name)}:{dump(value)}" for name, value in kept.items()]
    rows = [f"{dump(slug)}:{dump(row)}" for slug, row in features.items()]
    return "{" + ",\n".join(head) + ',\n"features":{\n' + ",\n".join(rows) + "}}\n"


if __name__ == "__main__":
    package = Path(sys.argv[1])
    source = json.loads((package / "data/caniemail.json").read_text())
    TARGET.write_text(written(reduced(source, (package / "LICENSE").read_text())))
    print(TARGET, TARGET.stat().st_size, "bytes", file=sys.stderr)
