# make help prints these lines.
#   make run         the development relay in the foreground; ARGS="--once" ends by itself
#   make test        the tests; TESTS="tests/unit/store/spool -k claim" for some; WORKERS=6 processes;
#                    SYSTEM_PACKAGES=install installs what they need of the system through sudo
#   make test-suites crashes, worlds, PostgreSQL, pages in a browser, other programs, the host: not in make test
#   make quick       before a commit: make check, and the tests that show most in a minute
#   make check       lint, types, import contracts, dead code, the policies' own tests
#   make bench       Relay and Postfix side by side; ARGS="NAME ...": another bench (docs/performance.md)
#   make simulate    SEEDS=10000 worlds from SEED0; SEED=123 TRACE=1 shows one of them
#   make docs        writes the tables of docs/ that are made from the code
#   make release     in dist/: sdists, wheels, manual pages, kit for Node, Debian packages, image, SBOMs; starts wheel and image
#   make clean       removes what the others have made
# docs/recipes.md describes the rest: test-long, crash, clients, deb, screenshots, requirements.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
# 3.15 last: google-re2 has no wheel for it, and would be compiled.
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11 python3.15; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The versions of libraries: of the lock, or the newest or lowest of the ranges in pyproject.toml, which need a VENV of their own.
VERSIONS ?= lock
ARGS ?=
RUNS ?= 200
SEEDS ?= 10000
SEED0 ?= 0
SEED ?=
TRACE ?=
TESTS ?=
# Half of them compute, half take first the tests that wait: tests/support/workers.py.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); \
	echo $$((cores < 3 ? 6 : cores > 6 ? 12 : 2 * cores)))
SYSTEM_PACKAGES ?=
# Without compiled modules, each process that a test starts would compile all of Relay.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run venv test test-suites test-long check quick quick-tests lint types modules layers unused rules subjects bench \
	bench-here simulate docs clients screenshots crash requirements release image deb clean

help:
	@sed -n 's/^#   //p' Makefile

run: $(VENV)/installed
	@exec $(BIN)/relay dev $(ARGS)

venv: $(VENV)/development

# What takes longest, and shows little of a change elsewhere. Of the contract, the engine that has a server.
SUITES := tests/bench tests/crash tests/host tests/interop tests/pages tests/postgres tests/simulation \
	tests/security/test_hostile_text.py tests/unit/store/spool/postgres tests/unit/testing

test: $(VENV)/development $(if $(TESTS),.pages/installed,$(VENV)/tests-compiled)
	@SYSTEM_PACKAGES=$(SYSTEM_PACKAGES) tests/system-packages.sh $(if $(TESTS),,own)
	TIMEFORMAT="make test: %0lR"; time $(if $(TESTS),,RELAY_TEST_ENGINES=sqlite )$(BIN)/python -m pytest -p tests.support.repeat_failed \
	    -n $(WORKERS) $(or $(TESTS),$(addprefix --ignore=,$(SUITES)))

test-suites:
	@RELAY_TEST_ENGINES=postgresql $(MAKE) test TESTS="$(SUITES) tests/contract"

test-long:
	@$(MAKE) test TESTS="-m long"

check: lint types modules layers unused rules subjects

# Whole rooms where decisions are made, of each other room the tests of what it is for, and other people's
# clients by HTTPS and STARTTLS, whose defaults change with the version of Python. Left out: real processes,
# crashes, models, slow clients, and what takes more than a few seconds.
of = $(addprefix tests/unit/$(strip $(1))/test_,$(addsuffix .py,$(2)))
QUICK := tests/dialogue \
	$(addprefix tests/unit/,base delivery/reports transport/routing) \
	tests/unit/test_running_relay.py \
	$(call of,front_door/sign_in,access_tokens) \
	$(call of,front_door/api,queue_commands search_text) \
	$(call of,operation/app,daemon maintenance pressure_monitor routes) \
	$(call of,operation/cli,errors options output queue) \
	$(call of,delivery,active_queue attempt_result fair_queue host_selection retry site_limits) \
	$(call of,front_door/graph,endpoint_table graph_authorization graph_listing graph_messages graph_send_mail \
	    graph_send_options odata_filter query_options serializer) \
	$(call of,front_door/http,connection_limits event_stream http_server) \
	$(call of,transport/ingress,acceptance data early_talkers fanout header_cleanup send_as session_counts smtp_server) \
	$(call of,development/internet,scenario_file scenario_state test_recipients) \
	$(call of,store/journeys,journey) \
	$(call of,store/mailbox,messages folders inbox maildir message_file quota old_files) \
	$(call of,submission/outbox,scheduled_sends submissions) \
	$(call of,formats,convert draft dsn headers read_mime write_header) \
	$(call of,front_door/pages,content forms site) \
	$(call of,submission/pickup,decisions start_limits) \
	$(call of,transport/policy,engine rule_files shipped_policies) \
	$(call of,delivery/smtp,connection transaction) \
	$(call of,store/spool,claims prune restart spool write_ahead_log) \
	$(call of,testing,message waiting) \
	$(addprefix tests/integration/test_,$(addsuffix .py,damaged_files seven_steps)) \
	tests/unit/front_door/http/test_https.py::test_one_server_has_listeners_with_and_without_tls \
	tests/unit/development/internet/test_smtp_host.py::test_starttls_has_the_good_certificate_or_the_bad_one \
	tests/clients/test_token_endpoint.py::test_msal_without_instance_discovery

# What looks at the tree finds the same with another Python, and what the engines of the spool answer is SQL's.
SAME := $(if $(filter .venv,$(VENV)),tests/test_tidy.py tests/unit/test_docs.py tests/contract)

quick: $(VENV)/development
	@$(MAKE) -j 2 --output-sync=target check quick-tests

quick-tests: $(VENV)/development
	RELAY_TEST_ENGINES=sqlite $(BIN)/python -m pytest -q -n 2 $(SAME) $(QUICK)

lint: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.support.raised_names relay

types: $(VENV)/development
	$(BIN)/mypy --strict relay

# With the environment of another tree, mypy finds there what is missing here.
modules: $(VENV)/development
	@$(BIN)/python -P -c 'import importlib, pkgutil, sys, relay; \
	    here, [there, *_] = "$(CURDIR)/relay", relay.__path__; \
	    here == there or sys.exit(f"$(VENV) belongs to {there}, expected {here}"); \
	    [importlib.import_module(one.name) for one in pkgutil.walk_packages([here], "relay.") if "__main__" not in one.name]'

layers: $(VENV)/development
	PYTHONPATH=. $(BIN)/lint-imports

unused: $(VENV)/development
	$(BIN)/vulture
	$(BIN)/deptry .

rules: $(VENV)/development
	$(BIN)/relay policy check policies

# Those since 0.4.0; without a history there are none.
subjects:
	@release=$$(git log -1 --format=%H --grep='^release: 0\.4\.0' 2>/dev/null); [ -z "$$release" ] || \
	    git log --format=%s "$$release.." | awk 'length > 72 { print "commit subject of over 72 characters: " $$0; bad = 1 } \
	    END { exit bad }'

# The Python of the distribution is built with PGO; others, such as pyenv's, may take up to a sixth more.
BENCH_PYTHON = $(if $(filter file,$(origin PYTHON)),$(shell /usr/bin/python3 -c \
	'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3))

bench:
	@$(MAKE) bench-here $(if $(filter .venv,$(VENV)),$(addprefix VENV=.venv/bench PYTHON=,$(BENCH_PYTHON)))

bench-here: $(VENV)/development
	@$(BIN)/python -m tests.bench $(ARGS)

docs: $(VENV)/development
	$(BIN)/python -m tests.support.docs_tables

simulate: $(VENV)/development
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --seed0 $(SEED0) \
	    $(if $(SEED),--seed $(SEED)) $(if $(TRACE),--trace)

clients: .clients/installed
	@SYSTEM_PACKAGES=$(SYSTEM_PACKAGES) tests/system-packages.sh languages
	.clients/venv/bin/python -m pytest -m "" -n 2 tests/clients $(ARGS)

screenshots: $(VENV)/development
	$(BIN)/python -m tests.pages.screenshots

crash: $(VENV)/development
	RUNS=$(RUNS) $(BIN)/python -m pytest -m "" -n 2 tests/crash/test_storm.py tests/crash/test_queue_storm.py \
		tests/postgres/test_storm_of_nodes.py

# The wheel is made of the sdist, so that this holds all that is needed; a dirty tree is no release. All of dist/ is the release,
# which .github/workflows/release.yml makes of a tag on each processor, and publishes.
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
DATED = SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python
SBOM = $(DATED) packaging/sbom.py

release: $(VENV)/development $(VENV)/release
	@[ "$${TAG:-v$(VERSION)}" = v$(VERSION) ] || \
	    { echo "release: found the tag $$TAG, expected v$(VERSION), as in pyproject.toml" >&2; exit 65; }
	@test -z "$$(git status --porcelain)" || { echo "release: the tree has changes that are not committed" >&2; exit 65; }
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m build --no-isolation --outdir dist clients/pytest
	$(DATED) packaging/manual.py dist/share
	tar -C dist/share -czf dist/graph_relay-manual.tar.gz . && rm -rf dist/share
	@command -v npm >/dev/null || { echo "release: npm is not installed: no package for Node" >&2; exit 0; }; set -e; \
	cp -r clients/node dist/node; cp LICENSE dist/node; \
	npm pkg set "version=$(subst .dev,-dev.,$(VERSION))" --prefix dist/node; \
	npm pack --silent --pack-destination dist ./dist/node; rm -rf dist/node
	$(PYTHON) -m venv --without-pip dist/venv
	$(BIN)/python -m pip --python dist/venv/bin/python $(PIP_OPTIONS) --constraint $(VENV)/constraints.txt dist/graph_relay-*.whl
	$(SBOM) dist/venv dist/graph_relay-$(VERSION)-py3-none-any.cdx.json
	$(BIN)/python -m pip --python dist/venv/bin/python $(PIP_OPTIONS) dist/*.whl
	dist/venv/bin/relay --version
	cd dist/venv && bin/relay dev --once
	rm -rf dist/venv
	@$(MAKE) deb
	@set -e; for each in dist/graph-relay_*.deb; do \
	    dpkg-deb -x $$each dist/root; $(SBOM) dist/root "$${each%.deb}.cdx.json"; rm -rf dist/root; done
	@$(MAKE) image

# For the processor of this machine. Without a program that builds images there is none, unless IMAGE=required.
ENGINE ?= $(shell for each in docker podman; do $$each info >/dev/null 2>&1 && echo $$each && break; done)
PROCESSOR = $(shell dpkg --print-architecture)
BASE = python:3.13-slim
LABEL = --label org.opencontainers.image

# The base is the newest; where no registry answers, what is here. Its digest stands in the label.
image: $(VENV)/release
	@set -o pipefail; engine=$(ENGINE); tag=relay-release:$(PROCESSOR); \
	[ -n "$$engine" ] || { echo "image: neither docker nor podman runs here" >&2; [ -z "$$IMAGE" ]; exit; }; \
	$$engine pull --quiet $(BASE) 2>/dev/null || $$engine run --rm $(BASE) true || exit; \
	base=$$($$engine image inspect --format '{{index .RepoDigests 0}}' $(BASE)) && \
	$$engine build --tag $$tag --build-arg BASE=$$base --build-arg RELAY_COMMIT=$$(git rev-parse --short=12 HEAD) \
	    $(LABEL).version=$(VERSION) $(LABEL).base.digest=$${base#*@} --file Containerfile . && \
	$$engine run --rm --env RELAY_DEV_TOKEN=$$(openssl rand -hex 16) $$tag dev --once && \
	$$engine save $$tag | gzip -9n >dist/relay-image-$(PROCESSOR).tar.gz && \
	mkdir -p dist/root && made=$$($$engine create $$tag) && $$engine export $$made | tar -C dist/root -xf - \
	    opt/relay usr/local/lib usr/share/doc var/lib/dpkg/status && $$engine rm $$made >/dev/null && \
	$(SBOM) dist/root dist/relay-image-$(PROCESSOR).cdx.json && rm -rf dist/root

deb: $(VENV)/made
	packaging/debian/build.sh $(BIN)/python

# With the build backends, nothing else is needed to install without build isolation.
BUILD_REQUIREMENTS = import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "editables", "setuptools", sep="\n")
CHECKS = import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["checks"], sep="\n")
COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --annotation-style line --quiet \
	--no-config --custom-compile-command "make requirements" $(ARGS)

# The lock files: of an installation, which says so in its first line; of libraries without wheels; of what builds them and
# Relay; of what a release needs besides.
requirements: $(VENV)/made
	$(BIN)/python $(PIP_INSTALL) uv
	$(COMPILE) pyproject.toml --extra postgres --extra checks \
	    --no-emit-package dkimpy --no-emit-package pyspf --output-file requirements.txt
	$(BIN)/python -c '$(CHECKS)' | $(COMPILE) - --no-deps --output-file requirements-archives.txt
	$(BIN)/python -c '$(BUILD_REQUIREMENTS)' | $(COMPILE) - --constraint requirements.txt --output-file requirements-build.txt
	$(BIN)/python -c '$(GROUPS_OF)' release | $(COMPILE) - --constraint requirements.txt --constraint requirements-build.txt \
	    --output-file requirements-release.txt
	sed -i '1i # A lock file: the version and hashes of each package that an installation gets.' requirements.txt

clean:
	rm -rf .venv .clients .pages .relay build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache
	find relay tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: each stands for a step that need not be done again while what it depends on is as it was.
$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "Relay needs Python 3.11 or newer, and found none" >&2; exit 69; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

PIP_OPTIONS := install --quiet --disable-pip-version-check
PIP_INSTALL := -m pip $(PIP_OPTIONS)

$(VENV)/locked: requirements.txt requirements-build.txt $(VENV)/made
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r requirements.txt -r requirements-build.txt
	@touch $@

$(VENV)/release: requirements-release.txt $(VENV)/made
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/locked
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# pip knows dependency groups only since 25.1, so groups are read here.
GROUPS_OF = import sys, tomllib; groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; \
	print("\n".join(one for name in sys.argv[1:] for one in groups[name]))
TOOLS ?= dev

# The tools have no hashes, and pip takes none of them beside files that have: they keep to the versions of the lock.
CONSTRAINTS_lock = sed -n 's/^\([^ ]*==.*\) \\$$/\1/p' requirements.txt requirements-build.txt
CONSTRAINTS_newest = :
CONSTRAINTS_lowest = $(BIN)/python -c 'import re, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*[re.sub(">=([^,]+).*", r"==\1", one) for one in project["dependencies"]], sep="\n")'

$(VENV)/development: pyproject.toml $(if $(filter lock,$(VERSIONS)),$(VENV)/locked) $(VENV)/made
	$(BIN)/python -c '$(GROUPS_OF)' $(TOOLS) > $(VENV)/development.txt
	$(CONSTRAINTS_$(VERSIONS)) > $(VENV)/constraints.txt
	$(BIN)/python $(PIP_INSTALL) --constraint $(VENV)/constraints.txt $(if $(filter lock,$(VERSIONS)),--no-build-isolation) \
	    --editable . --editable clients/pytest -r $(VENV)/development.txt
	@touch $(VENV)/installed $@

# pytest rewrites the asserts of each test module and keeps the result: here once, and not in each worker.
# What cannot be imported is reported by the tests.
$(VENV)/tests-compiled: $(VENV)/development
	@$(BIN)/python -m pytest -qq --collect-only -p no:cacheprovider tests >/dev/null 2>&1 || true
	@touch $@

# The large client libraries have an environment of their own, and Node its packages next to it.
.clients/installed: pyproject.toml requirements.txt tests/clients/package.json
	@$(MAKE) .clients/venv/development VENV=.clients/venv TOOLS="dev clients"
	cp tests/clients/package.json .clients/package.json
	npm install --prefix .clients --no-package-lock --no-audit --no-fund --loglevel=error --legacy-peer-deps
	@touch $@

# axe-core looks for what keeps people out of a page. Without npm its tests are skipped.
.pages/installed: tests/pages/package.json
	@mkdir -p .pages && cp $< .pages/package.json && command -v npm >/dev/null && \
	npm install --prefix .pages --no-package-lock --no-audit --no-fund --loglevel=error \
	    --fetch-retries=1 --fetch-timeout=20000 && touch $@ || \
	echo "tests that need axe-core are skipped: npm does not install it" >&2
