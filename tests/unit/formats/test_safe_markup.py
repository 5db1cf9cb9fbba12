"""Styles: only what the patterns know remains."""

from hypothesis import given
from hypothesis import strategies as st

from relay.formats.safe_markup import safe_framed_style, safe_style, safe_style_sheet
from tests.support.tables import each_row


@each_row(
    "style, quoted, framed",
    [
        ("color:red; width: 1px", "color:red; width:1px", "color:red; width:1px"),
        ("margin:-1px", "", "margin:-1px"),
        ("display:flex", "", "display:flex"),
        ("width:calc(100% - 2px)", "", "width:calc(100% - 2px)"),
        ("position:fixed;z-index:9", "", ""),
        ("background:url(https://x.test/a)", "", ""),
        ("background:image-set('https://x.test/a' 1x)", "", ""),
        (r"background:u\72l(https://x.test/a)", "", ""),
        ("width:expression(alert(1))", "", ""),
        ("behavior:url(#x);-moz-binding:url(#y)", "", ""),
        ("color:red}</style><script>", "", ""),
    ],
)
def test_a_style_keeps_its_safe_declarations(style, quoted, framed):
    assert (safe_style(style), safe_framed_style(style)) == (quoted, framed)


@each_row("source, expected", [
        ("p { color: red }", "p { color:red }"),
        ("<!-- p{color:red} -->", "p { color:red }"),
        (".a, #b > td:hover { margin: 0 !important; }", ".a, #b > td:hover { margin:0 !important }"),
        ("@media (max-width:600px) { p { width:100% } }", "@media (max-width:600px) {\np { width:100% }\n}"),
        ("@media print { p { width:1px }", "@media print {\np { width:1px }\n}"),
        ("@import url(https://x.test/a.css); p{color:red}", "p { color:red }"),
        ("@font-face { font-family:x; src:url(https://x.test/f) } p{color:red}", "p { color:red }"),
        ("@supports (a:b) { p{color:red} } b{color:red}", "b { color:red }"),
        ("p{color:red; b{color:blue} width:1px}", "p { color:red; width:1px }"),
        ('p[title="}"]{color:red}', ""),
        ("p{background:url(https://x.test)}", ""),
        ("p/* } */{color:/* x */red}", "p { color:red }"),
        ("/* p{color:red}", ""),
        ("}}} p{color:red", "p { color:red }"),
        ("</style><script>x</script>{color:red} p{color:red}", "p { color:red }")
    ])  # fmt: skip
def test_a_style_sheet_keeps_its_safe_rules(source, expected):
    assert safe_style_sheet(source) == expected


PIECES = [
    "p",
    "{",
    "}",
    ";",
    "@media x",
    "@import",
    "url(",
    ")",
    "color:red",
    "<",
    "</style>",
    "/*",
]
PIECES += ["*/", "\\", '"', "'", "\n", "//x.test", "<!--", "-->", ":", "(", "calc("]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_style_sheet_loads_or_ends_its_element(source):
    written = safe_style_sheet(source)
    assert not any(one in written for one in ("<", "url(", "@import", "\\", "//"))
    assert written.count("{") == written.count("}")
