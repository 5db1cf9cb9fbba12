"""Write what a file of a release is made of, in CycloneDX 1.6: `packaging/sbom.py ROOT FILE`.

ROOT is a directory with the unpacked file. Components are the Python packages of each
site-packages below it, with those that their own SBOMs name (PEP 770) and the scripts of others in
the pages; of an image also its Python and Debian's packages. Licences are those that packages
declare. Equal files have equal SBOMs: the time is SOURCE_DATE_EPOCH, and the serial number is made
of the content.
"""

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.parser import HeaderParser
from importlib.metadata import PathDistribution
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

VENDORED = "relay/front_door/pages/static/vendored.toml"
NAME_LENGTH_MAX = 60  # a longer License is the text of it
LICENCE = LicenseFactory().make_from_string


def main(root: Path, file: Path) -> None:
    """Write the file."""
    python = dict(_python(root))
    [relay] = [one for one in python if one.name == "graph-relay"]
    name = file.name.removesuffix(".cdx.json")
    made = Component(name=name, bom_ref=name, version=relay.version, licenses=relay.licenses)
    made.type = ComponentType.CONTAINER if "image" in name else ComponentType.APPLICATION
    bom = Bom(components=[*python, *_interpreter(root), *_debian(root)])
    bom.metadata.component = made
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom.register_dependency(made, bom.components)
    for component, needed in python.items():
        bom.register_dependency(component, [one for one in python if one.name in needed])
    bom.serial_number = uuid5(NAMESPACE_OID, name)
    bom.serial_number = uuid5(NAMESPACE_OID, JsonV1Dot6(bom).output_as_string())
    file.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


def _python(root: Path) -> Iterator[tuple[Component, set[str]]]:
    """Yield each package with the names of those that it needs, without its extras."""
    for path in sorted(root.glob("**/site-packages/*.dist-info")):
        package = PathDistribution(path)
        name = _normalized(package.name)
        purl = PackageURL("pypi", name=name, version=package.version)
        component = _component(purl, _declared(package))
        within = [part for file in sorted(path.glob("sboms/*.json")) for part in _within(file)]
        if name == "graph-relay":
            within += _scripts(path.parent / VENDORED)
        component.components = {f"{part.purl}": part for part in within}.values()
        for part in component.components:
            part.bom_ref.value = f"{purl}#{part.purl}"
        needed = [one for one in package.requires or () if "extra ==" not in one]
        yield component, {_normalized(re.split(r"[^\w.-]", one)[0]) for one in needed}


def _within(file: Path) -> Iterator[Component]:
    for part in json.loads(file.read_text())["components"]:
        licences = [each for one in part.get("licenses", ()) for each in _of_json(one)]
        yield _component(PackageURL.from_string(part["purl"].partition("?")[0]), licences)


def _of_json(licence: dict[str, object]) -> Iterator[str]:
    """Yield what an SBOM names: an expression, an id or a name."""
    if "expression" in licence:
        yield str(licence["expression"])
    elif isinstance(one := licence.get("license"), dict):
        yield one.get("id") or one["name"]


def _scripts(vendored: Path) -> Iterator[Component]:
    for one in tomllib.loads(vendored.read_text()).values():
        yield _component(PackageURL("npm", None, one["name"], one["version"]), [one["licence"]])


def _interpreter(root: Path) -> Iterator[Component]:
    """Yield the Python of an image, which belongs to no package of its base."""
    for file in root.glob("opt/relay/pyvenv.cfg") if (root / "var/lib/dpkg").exists() else ():
        [version] = re.findall(r"^version = (\S+)", file.read_text(), re.MULTILINE)
        yield _component(PackageURL("generic", name="python", version=version), ["PSF-2.0"])


def _debian(root: Path) -> Iterator[Component]:
    status = root / "var/lib/dpkg/status"
    for text in status.read_text().strip().split("\n\n") if status.exists() else ():
        fields = HeaderParser().parsestr(text)
        name, arch = fields["Package"], {"arch": fields["Architecture"]}
        purl = PackageURL("deb", "debian", name, fields["Version"], qualifiers=arch)
        yield _component(purl, _of_debian(root / "usr/share/doc" / name / "copyright"))


def _of_debian(file: Path) -> set[str]:
    """Return the short names of a machine-readable file (DEP-5); of another, where it is."""
    text = file.read_text(errors="replace") if file.exists() else ""
    names = re.findall(r"^License: *(\S.*)", text, re.MULTILINE) if "Format:" in text[:200] else ()
    return {name.strip() for name in names} or {f"see {file.name} of {file.parent.name}"}


def _declared(package: PathDistribution) -> Iterable[str]:
    """Return what the metadata names: an expression (PEP 639), a short name, or classifiers."""
    fields = package.metadata
    for value in (fields.get("License-Expression", ""), fields.get("License", "")):
        if 0 < len(value) <= NAME_LENGTH_MAX:
            return [value]
    classifiers = fields.get_all("Classifier", [])
    return {one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: ")}


def _component(purl: PackageURL, licences: Iterable[str]) -> Component:
    """Return a component; of several licences, each is named, as an expression must be alone."""
    names = sorted(licences)
    licenses = [LICENCE(name) for name in names]
    if len(names) > 1:
        licenses = [DisjunctiveLicense(name=name) for name in names]
    return Component(
        name=purl.name,
        version=purl.version,
        purl=purl,
        bom_ref=str(purl),
        licenses=licenses,
    )


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
