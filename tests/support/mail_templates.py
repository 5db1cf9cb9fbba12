"""Mails as MJML, Foundation for Emails, Cerberus and react-email write them: frame and content of each.

Nothing in them is on another host but images of backgrounds, which no browser gets.
"""

GIF = "data:image/gif;base64,R0lGODlhAQABAIABAP8AAP///ywAAAAAAQABAAACAkQBADs="
_TABLE = 'role="presentation" cellspacing="0" cellpadding="0" border="0"'
_XHTML = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 {0}//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-{1}.dtd">'

CONTENTS = {
    "gradient": '<div style="background:#369 linear-gradient(90deg,#f06,#48f 80%);height:300px;color:#fff;padding:20px">Sale</div>'
    '<div style="height:200px;background-image:radial-gradient(circle at 50% 50%,rgba(0,0,0,.4),transparent),url(http://x.evil.test/a)"></div>',
    "grid": "<style>.g{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));grid-template-areas:'a a b';gap:8px}.g>*{background:#fc6;height:90px}</style>"
    '<div class="g"><p style="grid-area:b">1</p><p>2</p><p style="grid-row:span 2">3</p><p>4</p><p>5</p></div>',
    "variables": "<style>:root{--Brand:#d946ef;--pad:calc(8px*3)}.v{background:var(--Brand);padding:var(--pad);color:var(--none,var(--x,#fff))}</style>"
    '<div class="v" style="--pad:60px">Variables<p style="border:20px solid var(--Brand);background:#fff">x</p></div>',
    "supports": "<style>.s{height:200px;background:#c00}@supports (display:grid) and (not (display:none-such)){.s{background:#0a0}}"
    "@media (min-width:0){@supports not (display:grid){.s{display:none}}}@media (width>=5000px){.s{display:none}}</style><div class=s>x</div>",
    "drawing": '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300" viewBox="0 0 40 30"><defs><linearGradient id="g" x1="0" y1="0" x2="1" y2="1">'
    '<stop offset="0" stop-color="#f00"/><stop offset="1" stop-color="#00f"/></linearGradient><clipPath id="c"><circle cx="10" cy="15" r="9"/></clipPath></defs>'
    '<rect width="40" height="30" fill="url(#g)" clip-path="url(#c)"/><path d="M22 5l8 20h-16z" style="fill:#0a0;stroke:#000"/><text x="24" y="28" font-size="4">Text</text></svg>',
    "places": '<div style="position:relative;height:260px;background:#eee"><span style="position:absolute;right:20px;bottom:10px;background:#f00;color:#fff;'
    'padding:40px;transform:rotate(-8deg) translateX(-10%);z-index:2">-50 %</span><b style="position:absolute;inset:0 auto auto 0;background:#000;width:150px;height:90px"></b></div>',
    "columns": '<div style="columns:3 100px;column-gap:16px;column-rule:2px solid #c00;text-align:justify">'
    + "<span>Columns of text in a newsletter. </span>" * 30
    + '</div><div style="aspect-ratio:2/1;width:80%;background:#393;box-shadow:0 8px 20px rgba(0,0,0,.5);border-radius:20px 0"></div>',
    "fields": '<form action="http://x.evil.test/" style="display:inline"><button disabled style="background:#06c;color:#fff;padding:20px 60px;border:0;border-radius:8px">Vote</button> '
    '<label><input disabled type="checkbox" checked> Yes</label> <input disabled value="Name" style="width:100%;padding:20px;background:#ffc"></form><p hidden>'
    + "x "
    * 900,
    "products": f'<table {_TABLE} width="100%" style="border-collapse:collapse"><tr>'
    + (
        f'<td width="33%" valign="top" style="padding:8px;border:1px solid #ccc"><img src="{GIF}" width="150" height="150" alt="A"><p>'
        '<a href="http://x.evil.test/" style="color:#06c">A thing</a><br>9 EUR'
    )
    * 3
    + '</table><div style="background:url(http://x.evil.test/b.png) #246 no-repeat 50%/cover;height:200px">On a picture</div>',
    "text": "<style>h1::before{content:'[1] ';color:#c00}li:nth-child(2n+1){background:#def}a:not(.x):link{color:#a0a}p:last-child{filter:invert(1)}</style>"
    "<h1>News</h1><ul style='display:flex;flex-wrap:wrap;justify-content:space-between'><li>a<li>b<li>c</ul><p><a href=http://x.evil.test/>Link</a>"
    "<blockquote style='clip-path:polygon(0 0,100% 0,50% 100%);background:#9cf;height:250px;margin:0'>x</blockquote><table><td style='border:1px solid'>"
    f"<img src='{GIF}' width=99 height=99></table><p style='background:#fed'>x</p>",
}


def mjml(content: str) -> str:
    return (
        '<!doctype html><html xmlns="http://www.w3.org/1999/xhtml" xmlns:v="urn:schemas-microsoft-com:vml"><head><!--[if !mso]><!--><meta http-equiv="X-UA-Compatible" content="IE=edge">'
        "<!--<![endif]-->"
        '<style type="text/css">#outlook a{padding:0}body{margin:0;padding:0;-webkit-text-size-adjust:100%}table,td{border-collapse:collapse;mso-table-lspace:0pt}p{display:block;'
        "margin:13px 0}</style>"
        '<style type="text/css">@media only screen and (min-width:480px){.mj-column-per-50{width:50%!important;max-width:50%}}</style><style media="screen and (min-width:480px)">'
        ".moz-text-html .mj-column-per-50{width:50%!important}</style></head>"
        '<body style="word-spacing:normal;background-color:#f4f4f4"><div style="background-color:#f4f4f4"><div style="background:#fff;margin:0 auto;max-width:560px">'
        f'<table align="center" {_TABLE} style="width:100%"><tbody><tr><td style="direction:ltr;font-size:0;padding:20px 0;text-align:center">'
        + (
            '<div class="mj-column-per-50 mj-outlook-group-fix" style="font-size:13px;text-align:left;direction:ltr;display:inline-block;vertical-align:top;width:100%;'
            'font-family:Ubuntu,Helvetica,Arial,sans-serif"><h2>Half</h2>A column</div>'
        )
        * 2
        + f'<div style="font-size:13px;text-align:left">{content}</div></td></tr></tbody></table></div></div></body></html>'
    )


def foundation(content: str) -> str:
    return (
        f'{_XHTML.format("Strict", "strict")}<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><style>'
        f"table.body{{background:#f3f3f3;height:100%;width:100%}}table.container{{background:#fefefe;margin:0 auto;width:580px}}"
        "th.columns{font-family:Helvetica,Arial,sans-serif;font-weight:normal;text-align:left;padding:16px}.button td{background:#2199e8;border:2px solid #2199e8}.button a{color:#fefefe;"
        "padding:8px 16px;display:inline-block}"
        "@media only screen and (max-width:596px){table.container{width:95%!important}th.small-12{display:inline-block!important;width:100%!important}}</style></head>"
        f'<body style="margin:0"><table class="body" {_TABLE}><tr><td align="center" valign="top"><center><table class="container" {_TABLE}><tbody><tr><th class="small-12 columns">'
        f'{content}<table class="button"><tr><td><a href="http://x.evil.test/">Go</a></td></tr></table></th></tr></tbody></table></center></td></tr></table></body></html>'
    )


def cerberus(content: str) -> str:
    return (
        '<!DOCTYPE html><html lang="en" dir="rtl"><head><meta name="color-scheme" content="light dark"><style>:root{color-scheme:light dark;supported-color-schemes:light dark}'
        "html,body{margin:0 auto!important;padding:0!important;height:100%!important;width:100%!important}"
        "*{-ms-text-size-adjust:100%}u + #body a{color:inherit}.stack{display:inline-block;width:45%;vertical-align:top}@media screen and (max-width:480px){.stack{width:100%!important}}"
        "@media (prefers-color-scheme:dark){.email-bg{background:#111!important}}</style></head>"
        '<body id="body" class="email-bg" style="background-color:#222222"><center role="article" style="width:100%;background-color:#222222"><div style="max-width:540px;margin:0 auto;'
        f'background:#fff" class="email-container"><table align="center" {_TABLE} width="100%"><tr><td style="padding:20px;font-family:sans-serif;font-size:15px;line-height:20px;'
        'color:#555">'
        f'{content}<div class="stack">Right</div><div class="stack">Left</div></td></tr></table></div></center></body></html>'
    )


def react_email(content: str) -> str:
    return (
        f'{_XHTML.format("Transitional", "transitional")}<html dir="ltr" lang="en"><head><meta content="text/html; charset=UTF-8" http-equiv="Content-Type"/></head>'
        '<body style="background-color:rgb(246,249,252);font-family:-apple-system,&quot;Segoe UI&quot;,sans-serif"><!--$-->'
        '<div style="display:none;overflow:hidden;line-height:1px;opacity:0;max-height:0;max-width:0">Preview</div>'
        f'<table align="center" width="100%" {_TABLE} style="max-width:37.5em;background-color:rgb(255,255,255);margin-left:auto;margin-right:auto"><tbody><tr style="width:100%">'
        f'<td style="padding-block:20px;padding-inline:24px">{content}'
        '<a href="http://x.evil.test/" style="line-height:100%;text-decoration:none;display:inline-block;max-width:100%;mso-padding-alt:0px;background-color:rgb(95,81,232);'
        f'border-radius:3px;color:rgb(255,255,255);padding:12px"><span>Open</span></a><table><td style="background:#f00"><img src="{GIF}" width="90" height="40"></td></table></td></tr>'
        "</tbody></table><!--/$--></body></html>"
    )


TEMPLATES = {
    f"{kit.__name__} {name}": kit(content)
    for kit in (mjml, foundation, cerberus, react_email)
    for name, content in CONTENTS.items()
}
