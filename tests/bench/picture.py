"""`make bench ARGS=picture`: the picture and the newest tables of docs/performance.md, from the kept figures.

Both are functions of docs/performance.json alone, which `make bench ARGS="--keep docs/performance.json"`
writes. The picture has its own background, for light and for dark pages, and its numbers as text.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator

from tests.bench.side_by_side import BOUNDS, SENDMAIL_CLIENTS, TOP, Found, ratio_text

FIGURES = TOP / "docs/performance.json"
PICTURE = TOP / "docs/images/performance.svg"
PAGE = TOP / "docs/performance.md"
WRITTEN = re.compile(
    r"(<!-- make bench ARGS=picture writes .*? -->\n).*?(<!-- to here -->\n)", re.DOTALL
)
# the figure of a panel, its title, which way is better, and its left edge
PANELS = (
    ("cpu_ms_per_msg", "CPU time per message", "shorter is better", 80),
    ("through_per_s", "Messages per second", "longer is better", 430),
)
PANEL_WIDTH = 270
BUSY_LOAD = 1.0
ROW_HEIGHT = 38
TOP_HEIGHT = 84
STYLE = """\
  .page { fill: #ffffff } .bar { fill: #4f8fd0 } text { fill: #1f2328; font: 14px sans-serif }
  .line { stroke: #57606a; stroke-width: 1.5 } .postfix { stroke: #bc4c00; stroke-dasharray: 4 3 }
  .name { text-anchor: end } .title { font-weight: bold } .small { font-size: 12px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .bar { fill: #2f6fb0 } text { fill: #e6edf3 } .line { stroke: #adbac7 }
    .postfix { stroke: #f0883e }
  }"""


def main() -> int:
    """Write the picture and the tables."""
    found = json.loads(FIGURES.read_text())
    PICTURE.write_text(drawn(found))
    PAGE.write_text(with_tables(PAGE.read_text(), found))
    return 0


def drawn(found: Found) -> str:
    """Return the comparison as an SVG: a bar for each median, a line from the lowest to the highest."""
    height = TOP_HEIGHT + ROW_HEIGHT * len(BOUNDS) + 14
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img"'
                ' aria-labelledby="title values">'
            ),
            '<title id="title">Relay compared with Postfix</title>',
            f'<desc id="values">{described(found)}</desc>',
            f"<style>\n{STYLE}\n</style>",
            f'<rect class="page" width="760" height="{height}"/>',
            *(
                f'<text class="name" x="70" y="{middle(row) + 5}">{name}</text>'
                for row, name in enumerate(BOUNDS)
            ),
            *(part for panel in PANELS for part in panel_of(found, *panel)),
            "</svg>\n",
        ]
    )


def described(found: Found) -> str:
    """The numbers of the picture as a sentence for each workload."""
    ratios = {name: found[name]["ratio"] for name in BOUNDS}
    sentences = (
        f"{name}: CPU time {ratio_text(one['cpu_ms_per_msg'])},"
        f" messages per second {ratio_text(one['through_per_s'])}."
        for name, one in ratios.items()
    )
    return "Relay / Postfix, median (lowest .. highest). " + " ".join(sentences)


def middle(row: int) -> int:
    """The height of the middle of a row."""
    return TOP_HEIGHT + ROW_HEIGHT * row + ROW_HEIGHT // 2


def panel_of(found: Found, figure: str, title: str, better: str, left: int) -> Iterator[str]:
    """The bars of one figure, and a line where Postfix is."""
    spreads = [found[name]["ratio"][figure] for name in BOUNDS]
    highest = max(1.0, *(one[2] for one in spreads))

    def at(value: float) -> str:
        return f"{left + value / highest * PANEL_WIDTH:.1f}"

    yield f'<text class="title" x="{left}" y="24">{title}</text>'
    yield f'<text class="small" x="{left}" y="42">Relay / Postfix, {better}</text>'
    for row, (low, median, high) in enumerate(spreads):
        y = middle(row)
        width = f"{median / highest * PANEL_WIDTH:.1f}"
        yield f'<rect class="bar" x="{left}" y="{y - 10}" width="{width}" height="20"/>'
        yield f'<path class="line" d="M{at(low)} {y}H{at(high)}M{at(low)} {y - 5}v10M{at(high)} {y - 5}v10"/>'
        yield f'<text x="{left + PANEL_WIDTH + 8}" y="{y + 5}">{median:.2f}</text>'
    below = middle(len(spreads) - 1) + ROW_HEIGHT // 2
    yield f'<path class="line postfix" d="M{at(1)} {TOP_HEIGHT - 6}V{below}"/>'
    yield f'<text class="small" x="{at(1)}" y="{TOP_HEIGHT - 12}" text-anchor="middle">Postfix</text>'


def with_tables(page: str, found: Found) -> str:
    """Return the page with the tables of these figures."""
    text = "\n".join(
        [facts(found), "", *workloads(found), "", *latencies(found), "", *sendmail(found), ""]
    )
    page, count = WRITTEN.subn(lambda marks: f"{marks[1]}{text}{marks[2]}", page)
    assert count == 1, "docs/performance.md has no marks for the tables, or several"
    return page


def facts(found: Found) -> str:
    """When, where and how the figures were measured."""
    machine = found["machine"]
    text = (
        f"Measured {machine['date']}, commit {machine['commit']}, {machine['rounds']} rounds; Python"
        f" {machine['python']}; Postfix {machine['postfix']};\n{machine['processors']} processors,"
        f" load average before the run {machine['load_before']:g}."
    )
    if machine["load_before"] >= BUSY_LOAD:
        text += "\nOther work kept the machine busy, so rates and latencies are worse than those of an idle machine."
    return text


def workloads(found: Found) -> Iterator[str]:
    """The comparison with Postfix."""
    yield (
        "| workload | CPU per message, ratio | bound | messages/s, ratio | CPU per message | messages/s |"
        " commits per message | memory, ratio |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, bound in BOUNDS.items():
        ratio, ours = found[name]["ratio"], found[name]["relay"]
        yield (
            f"| {name} | {ratio_text(ratio['cpu_ms_per_msg'])} | {bound:.2f}"
            f" | {ratio_text(ratio['through_per_s'])} | {ours['cpu_ms_per_msg'][1]:.2f} ms"
            f" | {ours['through_per_s'][1]:.0f} | {ours['commits_per_msg'][1]:.2f}"
            f" | {ratio['pss_mb'][1]:.2f} |"
        )


def latencies(found: Found) -> Iterator[str]:
    """Milliseconds at a fixed rate."""
    latency = found["latency"]
    yield f"| latency in ms at {latency['per_s']} messages/s | accepted: p50 | p99 | then delivered: p50 | p99 |"
    yield "|---|---:|---:|---:|---:|"
    for title, name in (("Relay", "relay"), ("Postfix", "postfix")):
        yield f"| {title} | " + " | ".join(ratio_text(one) for one in latency[name].values()) + " |"


def sendmail(found: Found) -> Iterator[str]:
    """Graph's sendMail, without Postfix."""
    columns: dict[str, Callable[[Found], str]] = {
        "accepted/s": lambda one: f"{one['accepted'][1]:.0f}",
        "synced files/s": lambda one: f"{one['files'][1]:.0f}",
        "p50": lambda one: f"{one['p50_ms'][1]:.1f} ms",
        "p99": lambda one: f"{one['p99_ms'][1]:.1f} ms",
        "delivered/s": lambda one: f"{one['through'][1]:.0f}",
        "CPU per message": lambda one: f"{ratio_text(one['cpu_ms'])} ms",
    }
    yield "| sendMail, clients | " + " | ".join(columns) + " |"
    yield "|---:" * (len(columns) + 1) + "|"
    for clients in map(str, SENDMAIL_CLIENTS):
        cells = (column(found["sendmail"][clients]) for column in columns.values())
        yield f"| {clients} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
