"""Styles: only what the patterns know remains."""

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relay.formats.safe_markup import safe_framed_style, safe_style, safe_style_sheet
from tests.support.tables import each_row

NEW = (
    "position:fixed; z-index:9",
    "--Ink:#123; color:var(--Ink, var(--b, red))",
    "columns:2; aspect-ratio:2/1",
    "grid-template-columns:[a] repeat(2,minmax(0,1fr)) [b]",
    "transform:translate(-50%, 0) rotate(3deg)",
    "background:linear-gradient(90deg, #f00, rgba(0,0,0,.5) 3%), red",
    'content:"a [b]"; fill:url(#a)',
)


@each_row(
    "style, quoted, framed",
    [
        ("color:red; width: 1px", "color:red; width:1px", "color:red; width:1px"),
        ("margin:-1px", "", "margin:-1px"),
        ("display:flex", "", "display:flex"),
        ("width:calc(100% - 2px)", "", "width:calc(100% - 2px)"),
        *((style, "", style) for style in NEW),
        ("background:red url(https://x.test/a) 0 0", "", "background:red none 0 0"),
        ("color:/* x; */red; fill:url( '#a' )", "", "color:red; fill:url(#a)"),
    ],
)
def test_a_style_keeps_its_safe_declarations(style, quoted, framed):
    assert (safe_style(style), safe_framed_style(style)) == (quoted, framed)


@each_row(
    "style",
    [
        "background:image-set('https://x.test/a' 1x)",
        r"background:u\72l(https://x.test/a)",
        "width:expression(alert(1))",
        "behavior:url(#x)",
        "color:red}</style><script>",
        "content:url(x)",
        "--a:url(x)",
        "color:var(--a, url(x))",
        "--a:src('x')",
        "clip-path:url(#a)",
        "fill:url(x)",
        "fill:url('#a\")",
        "content:attr(title)",
        'content:"a',
        "content:'a\f'b'",
        "content:'\\a'",
        "--a:{b:c}",
        "--a:*/ /*",
        "--a:(",
        "--a:@import",
        "--a:" + "(" * 17 + ")" * 17,
        "background:'x'",
        "background:image(red)",
        "-webkit-mask-image:url(#a)",
        "animation:a 1s",
        "filter:progid:X(src='x')",
        "--a:\u017frc(x)",
    ],
)
def test_what_is_not_known_is_counted(style):
    left_out = Counter()
    assert safe_framed_style(f"{style}; mso-x:y; color-scheme:dark", None, left_out) == ""
    assert left_out["declarations"] == 1


@each_row(
    "source, expected",
    [
        ("p { color: red }", "p { color:red }"),
        ("<!-- p{color:red} -->", "p { color:red }"),
        (
            "a:not(.x):nth-child(2n+1)::after{color:red} a:url(x){color:red} a[b='url(x)']{color:red}",
            "a:not(.x):nth-child(2n+1)::after { color:red }",
        ),
        (
            ".a, #b > td:hover { margin: 0 !important; }",
            ".a, #b > td:hover { margin:0 !important }",
        ),
        (
            "@media (max-width:600px) { p { width:100% } }",
            "@media (max-width:600px) {\np { width:100% }\n}",
        ),
        ("@media print { p { width:1px }", "@media print {\np { width:1px }\n}"),
        ("@import url(https://x.test/a.css); p{color:red}", "p { color:red }"),
        ("@font-face { font-family:x; src:url(https://x.test/f) } p{color:red}", "p { color:red }"),
        (
            "@supports not (a: var(--b)) { p{color:red} } b{color:red}",
            "@supports not (a: var(--b)) {\np { color:red }\n}\nb { color:red }",
        ),
        (
            "@supports (a:url(x)) { p{color:red} } @layer x { p{color:red} } @keyframes x { to{color:red} } p[a{b:c}",
            "",
        ),
        ("p{color:red; b{color:blue} width:1px}", "p { color:red; width:1px }"),
        ('p[title="}"]{color:red}', ""),
        ("p{background:url(https://x.test)}", "p { background:none }"),
        ("p/* } */{color:/* x */red}", "p { color:red }"),
        ("/* p{color:red}", ""),
        ("}}} p{color:red", "p { color:red }"),
        ("</style><script>x</script>{color:red} p{color:red}", "p { color:red }"),
    ],
)
def test_a_style_sheet_keeps_its_safe_rules(source, expected):
    assert safe_style_sheet(source) == expected


PIECES = [
    *(
        "p",
        "{",
        "}",
        ";",
        "@media x",
        "@supports (",
        "@import",
        "url(",
        ")",
        "color:red",
        "<",
        "</style>",
        "/*",
        "--a:",
    ),
    *(
        "*/",
        "\\",
        '"',
        "'",
        "\n",
        "\f",
        "//x.test",
        "<!--",
        "-->",
        ":",
        "(",
        "calc(",
        "[",
        "]",
        "var(",
        "fill:",
        "image-set(",
    ),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_style_sheet_loads_or_ends_its_element(source):
    for written in (safe_style_sheet(source), safe_framed_style(source)):
        assert not any(one in written for one in ("<", "@import", "\\", "//", "/*", "\f"))
        assert set(re.findall(r"[\w-]+\(", written)) <= {"calc(", "var("}
        for one in ("{}", "()", "[]"):
            assert written.count(one[0]) == written.count(one[1])
