"""What runs on other machines: the workflows, service containers in CI, the compose file and the Kubernetes manifest of
the service.
"""

import os
import re
import subprocess
import sys
import time
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

from relay.base.settings.document import parse_document
from relay.base.settings.reader import load
from relay.development.verbs.dev import dev
from relay.development.verbs.dev_options import unknown_variables

TOP = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path.read_text() for path in (TOP / ".github/workflows").glob("*.yml")}
EXAMPLES = TOP / "docs/examples"
FIXED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+|\./\.github/workflows/\w+\.yml")
NAME = r"(?:ghcr.io/[\w-]+/relay|(?<=image: )relay|(?<=-t )relay)[\w.:-]*"
BUILT = {"run": "make release", "env": {"TAG": "${{ github.ref_name }}", "IMAGE": "required"}}
RELEASED = re.search(r"^## (\d+\.\d+\.\d+)", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
IMAGE = f"ghcr.io/graph-relay/relay:{RELEASED[1] if RELEASED else ''}"
CLOUD = (TOP / "conf/cloud.toml").read_text()
VARIABLES = {*re.findall(r"\"\$\{env:(\w+)", CLOUD)} - {"RELAY_REPORTS", "RELAY_COPY_TO"}


def test_actions_are_pinned_by_commit_with_the_tag_as_a_comment() -> None:
    used = [word for text in WORKFLOWS.values() for word in re.findall(r"uses: (.*)", text)]
    assert len(used) > 15
    assert [word for word in used if not FIXED.fullmatch(word)] == []


def test_only_jobs_that_publish_what_was_built_get_rights() -> None:
    for text in WORKFLOWS.values():
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
        assert "cache" not in text.replace("Nothing is cached", "")
    jobs = yaml.safe_load(WORKFLOWS["release"])["jobs"]
    publishing = [name for name, job in jobs.items() if "permissions" in job]
    assert publishing == ["pypi", "image", "page"]
    for name in publishing:
        first, *others = jobs[name]["steps"]
        assert jobs[name]["environment"]
        assert first["uses"].startswith("actions/download-artifact@")
        assert not re.search(r"checkout|pip |make |\$\{\{", str([one.get("run") for one in others]))
    assert BUILT in jobs["build"]["steps"]


def test_the_workflow_takes_what_the_recipe_makes() -> None:
    same = "--old-file=.venv/development"  # whatever the environment of the tests lacks
    variables = ("PROCESSOR=arm64", "ENGINE=docker", "PYTHON=python3")
    command = ["make", "--dry-run", same, "release", *variables]
    path = {"PATH": os.environ["PATH"]}  # not the variables of a make that runs this test
    made = subprocess.run(
        command, cwd=TOP, env=path, capture_output=True, text=True, check=True
    ).stdout
    jobs = yaml.safe_load(WORKFLOWS["release"])["jobs"]
    taken = str([one.get("run") for job in jobs.values() for one in job.get("steps", ())])
    taken = taken.replace("$processor", "arm64")
    [(tag, archive)] = re.findall(r" tag=(\S+);[\s\S]*>dist/(\S+)\s", made)
    for used in (f'docker tag "{tag}"', f"/built-arm64/{archive} ", f'--input "release/{archive}"'):
        assert used in taken
    assert "release/*.* release/SHA256SUMS" in taken
    steps = ("-m build", "clients/pytest", "manual.py", "npm pack", "dev --once", "debian/build.sh")
    places = [
        made.find(step) for step in (*steps, "$engine build", "dev --once && ", "$engine save")
    ]
    assert -1 not in places
    assert places == sorted(places)


def test_two_builds_are_equal_octet_by_octet(tmp_path: Path) -> None:
    built = []
    for umask in (0o022, 0o077):
        source = tmp_path / f"{umask}"
        subprocess.run(["git", "clone", "-q", TOP, source], umask=umask, check=True)
        subprocess.run([sys.executable, "-m", "hatchling", "build"], cwd=source, check=True)
        built.append({one.name: one.read_bytes() for one in (source / "dist").iterdir()})
    assert [one.rpartition(".")[2] for one in sorted(built[0])] == ["whl", "gz"]
    assert built[0] == built[1]


def test_the_notes_have_the_text_of_the_tag_and_the_base_of_the_image(tmp_path: Path) -> None:
    """A job without a checkout asks GitHub for the tag."""
    page = yaml.safe_load(WORKFLOWS["release"])["jobs"]["page"]
    gh = tmp_path / "gh"
    gh.write_text("#!/bin/sh\ncase $2 in */ref/*) echo tags/1 ;; */git/tags/1) echo TEXT ;; esac\n")
    gh.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_REF_NAME": "v1"}
    env |= {"GITHUB_REPOSITORY": "a/b", "BASES": "amd64: python@sha256:0"}
    subprocess.run(["bash", "-ec", page["steps"][-1]["run"]], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "notes").read_text() == "TEXT\n\nBase of the image, amd64: python@sha256:0\n"


def test_a_lock_older_than_90_days_fails_the_weekly_run(tmp_path: Path) -> None:
    [script] = [one["run"] for one in yaml.safe_load(WORKFLOWS["lock"])["jobs"]["age"]["steps"][1:]]
    who = ["git", "-c", "user.name=x", "-c", "user.email=x@a.test"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for days, code in ((91, 1), (89, 0)):
        date = {"GIT_COMMITTER_DATE": f"{int(time.time()) - days * 86_400} +0000"}
        for name, env in (("requirements.txt", os.environ | date), ("later", None)):
            (tmp_path / name).write_text(str(days))
            subprocess.run(["git", "add", name], cwd=tmp_path, check=True)
            subprocess.run([*who, "commit", "-qm", name], cwd=tmp_path, env=env, check=True)
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.count(f"is {days} days old")) == (code, code)


def test_the_image_has_one_name() -> None:
    files = [TOP / "Containerfile", *(TOP / "docs").glob("*.md"), *EXAMPLES.glob("*.yaml")]
    named = {file.name: set(re.findall(NAME, file.read_text())) for file in files}
    needed = "Containerfile cloud.md development.md compose-graph.yaml kubernetes-cloud.yaml"
    assert [name for name in needed.split() if not named[name]] == []
    assert set().union(*named.values()) == {IMAGE}


def test_service_containers_in_ci() -> None:
    """The image is started with its own command: it gets variables, and no words."""
    job = yaml.safe_load((EXAMPLES / "github-actions.yaml").read_text())["jobs"]["test"]
    [relay] = job["services"].values()
    assert (relay["image"], relay["ports"]) == (IMAGE, ["1025:1025", "8025:8025"])
    for page in ("testing.md", "testing-javascript.md"):
        text = (TOP / "docs" / page).read_text()
        blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        github, gitlab = (yaml.safe_load(one) for one in blocks if "services:" in one)
        assert github["services"] == job["services"]
        assert github["env"].items() <= job["env"].items()
        given = gitlab["test"]["variables"]  # the service gets them too
        assert gitlab["test"]["services"] == [{"name": IMAGE, "alias": given["RELAY_DEV_HOST"]}]
        for host, env, program in (
            ("localhost", relay["env"], job["env"]),
            ("relay", given, given),
        ):
            settings = {"SMTP_HOST": host, "SMTP_PORT": "1025", "RELAY_SMTP": f"{host}:1025"}
            settings |= {"RELAY_URL": f"http://{host}:8025", "RELAY_TOKEN": env["RELAY_DEV_TOKEN"]}
            own = {name: value for name, value in env.items() if name.startswith("RELAY_DEV_")}
            assert list(unknown_variables(own, dev)) == []
            assert program.items() - own.items() <= settings.items()
            assert {"SMTP_HOST", "SMTP_PORT", "RELAY_URL", "RELAY_TOKEN"} <= program.keys()


def test_the_pytest_plugin_is_one_line_in_a_distribution_of_its_own() -> None:
    relay, plugin = (
        tomllib.loads((TOP / one / "pyproject.toml").read_text())["project"]
        for one in (".", "clients/pytest")
    )
    [version] = {relay["version"], plugin["version"]}
    pytest = relay["optional-dependencies"]["testing"]
    assert plugin["dependencies"] == [f"graph-relay=={version}", *pytest]
    assert plugin["entry-points"] == {"pytest11": {"relay": "pytest_graph_relay"}}
    assert "entry-points" not in relay
    assert {path.name: path.read_text() for path in (TOP / "clients/pytest").glob("*.py")} == {
        "pytest_graph_relay.py": 'pytest_plugins = ["relay.testing.plugin"]\n'
    }
    others = ["graph_relay-manual.tar.gz", "relay-image-amd64.tar.gz"]
    built = [
        f"{one}graph_relay-{version}{end}"
        for one in ("", "pytest_")
        for end in (".tar.gz", "-py3-none-any.whl")
    ]
    patterns = re.search(r"cp -- (.*) python\n", WORKFLOWS["release"])[1].split()
    assert [
        one for one in (*built, *others) if any(fnmatch(one, each) for each in patterns)
    ] == built


def test_the_service_in_compose_and_through_google() -> None:
    text = (EXAMPLES / "compose-cloud.yaml").read_text()
    [relay] = yaml.safe_load(text)["services"].values()
    assert (relay["command"], relay["read_only"], relay["cap_drop"]) == (["serve"], True, ["ALL"])
    assert {name.removesuffix("_FILE") for name in relay["environment"]} == VARIABLES
    assert (relay["volumes"], relay["ports"][0][-5:]) == (["queue:/var/lib/relay"], ":2525")
    made = re.sub(r"^# ?", "", text[text.index("# configs:") :], flags=re.MULTILINE)
    content = yaml.safe_load(made)["configs"]["google"]["content"].replace("$$", "$")
    own = {"RELAY_HOSTNAME": "relay.example.test", "RELAY_TRUSTED": "192.0.2.0/24"}
    content = content.replace("google.json", "README.md")  # any file
    settings = load(parse_document(TOP / "relay.toml", content), own)
    assert settings.route[0].next_hop == "smtp://smtp.gmail.com:587"


def test_the_service_in_kubernetes() -> None:
    service, stateful = yaml.safe_load_all((EXAMPLES / "kubernetes-cloud.yaml").read_text())
    spec, pod = stateful["spec"], stateful["spec"]["template"]["spec"]
    [container], [secret] = pod["containers"], pod["volumes"]
    assert (spec["replicas"], service["spec"]["externalTrafficPolicy"]) == (1, "Local")
    assert {**pod["securityContext"], **container["securityContext"]} == {
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 10001),
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"]},
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
    }
    assert secret["secret"]["defaultMode"] == 0o440
    assert {one["name"].removesuffix("_FILE") for one in container["env"]} == VARIABLES
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert all(f':{port}"' in CLOUD for port in ports.values())
    probed = {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("liveness", "readiness")}
    assert (probed, service["spec"]["ports"][0]["targetPort"]) == ({"health"}, "smtp")
