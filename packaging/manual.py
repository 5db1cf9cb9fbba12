"""Write the manual pages and the completions of the shells: `python packaging/manual.py DIRECTORY`.

relay(1) and relay-VERB(1) are made from the texts of --help, relay.toml(5) from conf/relay.toml.
Below DIRECTORY they are where /usr/share has them. `make deb` and `make release` call this. The
date is SOURCE_DATE_EPOCH. See man(7).
"""

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))  # the relay of this checkout

import click  # noqa: E402
from click.shell_completion import get_completion_class  # noqa: E402

from relay import __version__  # noqa: E402
from relay.operation.cli.root import _GROUPS, cli  # noqa: E402

COMPLETIONS = {
    "bash": "bash-completion/completions/relay",
    "zsh": "zsh/vendor-completions/_relay",
    "fish": "fish/vendor_completions.d/relay.fish",
}
FILES = """.SH FILES
.TP
.I /etc/relay/relay.toml
The configuration, unless \\-\\-config or RELAY_CONFIG names another:
.BR relay.toml (5).
"""
SUMMARY = "self-hosted mail relay with the shape of Microsoft Graph's send-mail process"
IN_EACH_PAGE = ("--config", "--json", "-h")  # once
_SPOKEN = re.compile(r"`([^`\n]++)`")
_KEY = re.compile(r"#?([a-z_]++ = .++)")
_TABLE = re.compile(r"#?(\[\[?[a-z_.]++\]\]?)")


def escaped(text: str) -> str:
    """Return a text for troff; what is between backticks is bold."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    spoken = _SPOKEN.sub(r"\\fB\1\\fR", plain)
    return f"\\&{spoken}" if spoken.startswith(".") else spoken


def bold(text: str) -> str:
    """Return a text in bold: the argument of a macro would lose its quotes."""
    return f"\\fB{escaped(text)}\\fR"


def head(name: str, section: int, summary: str) -> str:
    """Return the title and the section NAME."""
    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    title = f'.TH "{escaped(name.upper())}" {section} {made:%Y-%m-%d} "Relay {__version__}" "Relay"'
    return f"{title}\n.SH NAME\n{escaped(name)} \\- {escaped(summary)}\n"


def paragraphs(command: click.Command) -> list[str]:
    """Return the text of --help before the options, and after them."""
    texts = f"{command.help or ''}\n\n{command.epilog or ''}".split("\n\n")
    return [" ".join(text.split()) for text in texts if text.strip()]


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield each option with its text."""
    for option in command.get_params(context):
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        is_page = context.parent is None or context.parent.parent is None
        if record and (is_page or not record[0].startswith(IN_EACH_PAGE)):
            yield f".TP\n{bold(record[0])}\n{escaped(record[1]) or '.br'}\n"


def synopsis(command: click.Command, context: click.Context) -> str:
    """Return the line that shows how a command is called."""
    usage = " ".join(command.collect_usage_pieces(context))
    return f"{bold(context.command_path)} {escaped(usage)}\n"


def verbs(group: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands of a group, if it is one, with their names."""
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            verb = group.get_command(context, name)
            assert verb is not None
            yield name, verb


def page(name: str, command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the parts of relay(1), or of relay-VERB(1) with all commands of the verb."""
    texts = paragraphs(command)
    is_root = command is cli
    yield head(name, 1, SUMMARY if is_root else texts[0].split(". ")[0].rstrip("."))
    yield f".SH SYNOPSIS\n{synopsis(command, context)}.SH DESCRIPTION\n"
    yield from (f".PP\n{escaped(text)}\n" for text in texts)
    yield ".SH OPTIONS\n"
    yield from options(command, context)
    if is_root:
        for title, group in _GROUPS.items():
            yield f".SH {title.upper()}\n"
            for verb, text in group.items():
                yield f".TP\n.BR relay\\-{verb} (1)\n{escaped(text)}\n"
        yield FILES
        return
    for number, (verb_name, verb) in enumerate(verbs(command, context)):
        inner = click.Context(verb, parent=context, info_name=verb_name)
        yield ".SH COMMANDS\n" if not number else ""
        yield f".SS {escaped(inner.command_path)}\n{synopsis(verb, inner)}"
        yield from (f".PP\n{escaped(text)}\n" for text in paragraphs(verb))
        yield from options(verb, inner)
    yield f"{FILES}.SH SEE ALSO\n.BR relay (1)\n"


def keys() -> Iterator[str]:
    """Yield the sections of relay.toml(5): a comment in the file describes the keys after it."""
    comment: list[str] = []
    described: list[str] = []
    tables = set[str]()
    yield ".SH DESCRIPTION\n"
    for line in [*(TOP / "conf/relay.toml").read_text().splitlines(), ""]:
        key, table = _KEY.fullmatch(line), _TABLE.fullmatch(line)
        if described and not key:
            yield "".join(f".{'TQ' if n else 'TP'}\n{name}\n" for n, name in enumerate(described))
            yield f"{escaped(' '.join(comment)) or '.br'}\n"
            comment, described = [], []
        text = f"{escaped(' '.join(comment))}\n" if comment else ""
        if key:
            described.append(bold(key[1]))
        elif table:
            yield f".S{'S Another' if table[1] in tables else 'H'} {escaped(table[1])}\n{text}"
            tables.add(table[1])
            comment = []
        elif line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
        elif comment:
            yield f".PP\n{text}"
            comment = []
    yield ".SH SEE ALSO\n.BR relay (1),\n.BR relay\\-config (1),\n.BR relay\\-check (1)\n"


def main() -> None:
    """Write all files."""
    context = click.Context(cli, info_name="relay", **cli.context_settings)
    title = head("relay.toml", 5, "configuration of Relay")
    files = {
        "man/man1/relay.1": "".join(page("relay", cli, context)),
        "man/man5/relay.toml.5": title + "".join(keys()),
    }
    for name, verb in verbs(cli, context):
        inner = click.Context(verb, parent=context, info_name=name)
        files[f"man/man1/relay-{name}.1"] = "".join(page(f"relay-{name}", verb, inner))
    for shell, place in COMPLETIONS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        files[place] = kind(cli, {}, "relay", "_RELAY_COMPLETE").source()
    for place, text in files.items():
        path = Path(sys.argv[1], place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
