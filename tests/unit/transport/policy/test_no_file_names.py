"""Names that end in .com and are no file names: subjects of messages, Content-IDs of pictures."""

import base64

from relay.base.message.envelope import Source
from relay.base.settings.environment import shipped
from relay.transport.policy.content_conditions import AttachmentCondition, AttachmentNameCondition
from relay.transport.policy.message_view import MessageView
from relay.transport.policy.rule_files import load_rules
from relay.transport.policy.rule_tests import examined_message, overall_verdict

PICTURE = """Content-Type: image/png; name="logo@shop.com"¶Content-ID: <logo@shop.com>
Content-Disposition: inline¶Content-Transfer-Encoding: base64¶¶{}"""
MESSAGE = """Content-Type: message/rfc822¶Content-Disposition: attachment; filename="at shop.com"
X-Kind: mail¶¶Received: by a¶ (b)¶From: a@shop.com¶Subject: x¶¶hi¶"""
MAGIC = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "gif": b"GIF89a",
    "webp": b"RIFF\4\0\0\0WEBPVP8 ",
    "mz": b"MZ\x89PNG\r\n\x1a\n",
    "late": b" \x89PNG\r\n\x1a\n",
    "none": b"",
}
# Each change of one of them, "old => new": those that leave it honest, and those that do not.
HONEST_PICTURES = """
=> | inline => inline; filename="logo@shop.com" | "logo@shop.com" => logo@shop.com
Disposition: inline => Language: en | logo@shop => Logo.1@Shop | <logo@shop.com> => logo@shop.com
inline => inline; filename="divider.png" | image/png => IMAGE/GIF {gif} | png; => jpeg; {jpeg}
png; => webp; {webp} | name= => name*=utf-8''logo%40shop.com; n=
"""
PROGRAMS_AS_PICTURES = """
<logo => <Logo | <logo => <xlogo | <logo@shop.com> => <a@b>¶Content-ID: <logo@shop.com>
Content-ID: <logo@shop.com>¶ => | Content-T => no field¶Content-T | logo@shop.com => logo.com
.com => .exe | .com => .scr | .com => .pif | .com => .js | .com => .bat | .com => .lnk | .com => .ps1
name="logo => name="x/logo | name="logo@shop.com => name="logo@shop.com. | "logo => "\u200blogo
"logo => "\uff4cogo | m" => m\\"" | inline => inline; filename="setup.com" | inline => attachment
inline => inline¶Content-Location: setup.com | inline => inline; filename*=utf-8''setup%2Ecom
inline => inline¶Content-Disposition: inline | inline => inline¶Content-Disposition: attachment
inline => inline; filename="logo@shop.com"; filename="a@setup.com" | png; => png (x); | png; => png x;
inline => inline¶Content-Type: a/b | image/png => application/octet-stream | image/png => image/svg+xml
image/png => image/bmp | base64 => base64 {jpeg} | base64 => base64 {mz} | base64 => base64 {late}
base64 => base64 {none} | base64 => base64¶Content-Transfer-Encoding: quoted-printable
"""
HONEST_MESSAGES = """
=> | X-Kind: mail => Content-Transfer-Encoding: 7bit | X-Kind: mail => Content-Transfer-Encoding: 8bit
X-Kind: mail => Content-Transfer-Encoding: Binary | message/rfc822 => message/rfc822; name="a.com"
message/rfc822 => message/global | From: a@shop.com => DATE: x | at shop => Re: (www.shop
"at shop.com" => "=?utf-8?q?Gr=C3=BC=C3=9Fe_von_shop=2Ecom?=" | attachment => inline
"""
PROGRAMS_AS_MESSAGES = """
.com" => .exe" | .com" => .scr" | .com" => .pif" | .com" => .js" | .com" => .com.bat" | .com" => .lnk"
rfc822 => partial | rfc822 => external-body | rfc822 => delivery-status | rfc822 => rfc822x
rfc822 => rfc822 (x) | message/rfc822 => application/octet-stream | message/rfc822 => text/x
rfc822 => rfc822¶Content-Type: a/b | message/rfc822 => a/b¶Content-Type: message/rfc822
rfc822 => rfc822¶Content-Type: a/b¶Content-Type: message/rfc822 | X-Kind: mail => no field
rfc822 => rfc822; name="setup.exe" | X-Kind: mail => Content-Transfer-Encoding: quoted-printable
X-Kind: mail => Content-Transfer-Encoding: base64 | X-Kind: mail => Content-Transfer-Encoding: x-coded
X-Kind: mail => Content-Transfer-Encoding: 7bit¶Content-Transfer-Encoding: base64 | Received => MZ
Received => MZReceived | mail¶ => mail¶¶ | Received => ¶Received | Received => \ufeffReceived
Received: by a => by a | Received => \tReceived | From: => From | From: a@shop.com => X: \0
Subject: x => no field | From => Fromage | From: => ¶From: | hi => ¶--b¶Content-Type: a/b; name=a.com¶
Content-Type: message/rfc822¶ => | Received: by a => \u00b4\u0009\u00ba: by a | ¶¶hi => \0
"""


def shapes(part: str, changes: str):
    """Yield each change, and a message with the part that is changed so."""
    for change in changes.strip("\n").replace("\n", " | ").split(" | "):
        old, new = (text.strip(" ") for text in change.split("=>"))
        new, _, kind = new.partition(" {")
        body = base64.encodebytes(MAGIC[kind.strip("}") or "png"] + bytes(9)).decode()
        text = part.replace("\n", "¶")
        assert old in text
        text = text.replace(old, new) if old else text
        text = f"Content-Type: multipart/mixed; boundary=b¶¶--b¶¶hi¶--b¶{text}¶--b--¶"
        yield change, text.format(body).replace("¶", "\r\n").encode()


def mail(content):
    return examined_message("a@a.test", ["b@b.test"], content, source=Source.SMTP, local_domains=())


def test_the_shipped_rules_refuse_programs_and_no_subjects_or_content_ids():
    rules = load_rules(shipped("policies"))
    for part, *lists in (
        (PICTURE, HONEST_PICTURES, PROGRAMS_AS_PICTURES),
        (MESSAGE, HONEST_MESSAGES, PROGRAMS_AS_MESSAGES),
    ):
        honest, others = ([*shapes(part, changes)] for changes in lists)
        assert len(others) >= 30
        for change, content in (*honest, *others):
            verdict = overall_verdict(rules.evaluate(mail(content)))
            assert (change, verdict == "accept") == (change, (change, content) in honest)


def test_only_the_ending_com_is_another():
    [(_, content)] = shapes(MESSAGE, "=>")
    view = MessageView(mail(content), mail(content).content, {})
    globs = {"*.com": 0, "*AT*.com": 0, "*.c?m": 0, "*.eml": 0, "at*": 1, "*": 1, "at shop.com": 1}
    for glob, matches in globs.items():
        for condition in (
            AttachmentNameCondition.parse([glob], {}),
            AttachmentCondition.parse({"name": glob, "type": "message/rfc822"}, {}),
        ):
            assert (glob, condition.matches(view)) == (glob, bool(matches))
            assert condition.value_in(view).startswith("at shop.com")
