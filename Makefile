# Shadow: what a developer types. `make` alone explains itself.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv/bin
VENV_DEBIAN := .venv-debian/bin
BUILD := build
SCRIPTS := scripts/demo scripts/demo-fleet
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
COVERAGE := $(BUILD)/coverage.data

# Variables for the command line, e.g. `make unit TESTS=tests/wire/test_frames.py PYTEST_FLAGS=-x`.
# TESTS          which tests
# JOBS           how many test processes, and machines (2, and 4 for `make unit`); 0: one, and in order
# PYTEST_FLAGS   further options of pytest
# LONG           which tests run on Debian's libraries: yes, all; else not those that wait for a clock, or are the longest
# RELEASE        the Debian release of `make test-machine`: trixie (13) or bookworm (12)
# MACHINE_TESTS  which tests `make test-machine` runs
# MARKS          of those, which by their marks: "not slow"; nothing: all
# BENCH_FLAGS    further options of `make bench` and `make bench-machine`, e.g. "--scale=0.1 --questions bulk"
# SIZE           how much `make demo` sends through the tunnel
TESTS ?= tests
JOBS ?= 2
PYTEST_FLAGS ?=
RELEASE ?= trixie
MACHINE_TESTS ?= tests/machine
MARKS ?= not slow
BENCH_FLAGS ?=
SIZE ?= 1G

PYTEST = -m pytest -q --numprocesses=$(JOBS) --dist=worksteal $(PYTEST_FLAGS) $(TESTS)

# $(call phase,NAME,COMMANDS): run them between a headline and the time they took.
phase = @printf '\n== %s\n' '$(1)'; \
	trap 'status=$$?; printf "== %s: %s in %d s\n" "$(1)" "$$( ((status)) && echo FAILED || echo ok)" "$$SECONDS"' EXIT; \
	$(2)

.PHONY: help
help: ## this list
	@echo 'make TARGET, where TARGET is one of'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo 'and variables'
	@sed -nE 's/^# ([A-Z_]{3,})  +(.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## install what is missing: Debian packages, Python libraries in .venv
	@scripts/setup test

.PHONY: demo
demo: ## see a tunnel work: ssh through it, then how fast it is
	@scripts/setup run
	@SIZE=$(SIZE) scripts/demo

.PHONY: demo-fleet
demo-fleet: ## see three servers as one fleet: one dies, its robot goes to another, and a visitor goes on
	@scripts/setup fleet
	@scripts/demo-fleet

# All phases run even if one fails: one look at the end of the output tells everything.
.PHONY: test
test: setup ## everything: linters, types, all tests with coverage, on Debian's libraries, in a machine
	$(call phase,test,$(MAKE) --keep-going lint types coverage test-debian test-machine)

.PHONY: test-all
test-all: test ## that, the longest tests on Debian's libraries and in the machine, faults, and Debian 12
	@$(MAKE) test-debian LONG=yes
	@$(MAKE) test-faults
	@$(MAKE) test-machine MARKS=slow
	@$(MAKE) test-machine MARKS= RELEASE=bookworm

.PHONY: lint
lint: setup ## style
	$(call phase,lint,$(VENV)/ruff check --quiet . $(SCRIPTS); $(VENV)/ruff format --check --quiet . $(SCRIPTS))

.PHONY: types
types: setup ## type checker, strict
	$(call phase,types,$(VENV)/mypy; $(foreach script,$(SCRIPTS),$(VENV)/mypy $(script);))

# The quick tests wait for other processes much of the time.
.PHONY: unit
unit: JOBS := 4
unit: setup ## the tests alone, in two minutes: without those that wait for a clock
	$(call phase,unit,$(VENV)/python $(PYTEST) -m 'not long and not slow')

# COVERAGE_PROCESS_START: the daemons that tests start are measured too, some of which run as somebody else.
.PHONY: coverage
coverage: export COVERAGE_PROCESS_START = $(CURDIR)/pyproject.toml
coverage: setup ## all tests, with branch coverage and its floor
	@mkdir -p $(BUILD)
	$(call phase,coverage,parts=$$(mktemp -d); chmod 1777 "$$parts"; \
	COVERAGE_FILE=$$parts/$(notdir $(COVERAGE)) $(VENV)/python $(PYTEST) -m 'not slow' && status=0 || status=$$?; \
	$(VENV)/coverage combine --quiet --data-file=$(COVERAGE) "$$parts"; rm -rf "$$parts"; \
	$(VENV)/coverage report --data-file=$(COVERAGE) || status=1; exit $$status)

.PHONY: test-debian
test-debian: setup ## the tests on Debian's own Python libraries; LONG=yes: with those that wait for a clock
	$(call phase,test-debian,$(VENV_DEBIAN)/python -c "$$libraries"; \
	$(VENV_DEBIAN)/python $(PYTEST) $(if $(LONG),--ignore=tests/fleet/test_faults.py,-m 'not long and not slow'))

# Root, for the machines of the fleet are network namespaces. What happened, and how soon all was well, is told in any case.
.PHONY: test-faults
test-faults: setup ## a fleet in which everything fails in turn for a minute; SHADOW_FAULTS_SEED=N: the same as then
	$(call phase,test-faults,$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(if $(SHADOW_FAULTS_SEED),SHADOW_FAULTS_SEED=$(SHADOW_FAULTS_SEED)) \
	$(VENV)/python -m pytest -q -rP -p no:cacheprovider $(PYTEST_FLAGS) tests/fleet/test_faults.py)

# Root is needed to make a Debian tree; the tests run as root too, for what they made is root's.
.PHONY: test-machine
test-machine: setup ## the package, systemd and kernel TLS, in a virtual machine
	@$(ROOT) tests/machine/setup
	$(call phase,test-machine,$(ROOT) env SHADOW_MACHINE=1 SHADOW_MACHINE_RELEASE=$(RELEASE) \
	$(VENV)/python -m pytest -q -m '$(MARKS)' --numprocesses=$(JOBS) --dist=worksteal --durations=10 $(PYTEST_FLAGS) \
	$(MACHINE_TESTS))

# Root, for the sshd that it starts takes visitors only if it is root's.
.PHONY: bench
bench: ## Shadow beside what people would use instead: a table, and build/bench
	@scripts/setup bench
	$(call phase,bench,$(ROOT) $(VENV)/python -m bench --output=$(BUILD)/bench $(BENCH_FLAGS))

.PHONY: bench-fleet
bench-fleet: setup ## thousands of robots, at one server and at several: what they cost, and how soon they are back
	$(call phase,bench-fleet,$(VENV)/python -m bench.fleet --output=$(BUILD)/bench $(BENCH_FLAGS))

# Root, as for test-machine.
.PHONY: bench-machine
bench-machine: setup ## the same in a virtual machine with kernel TLS; BENCH_FLAGS=--count counts instructions
	@$(ROOT) tests/machine/setup
	$(call phase,bench-machine,$(ROOT) $(VENV)/python -m bench.machine --release=$(RELEASE) $(BENCH_FLAGS))

.PHONY: deb
deb: ## build the Debian package into build/deb
	@scripts/setup deb
	@scripts/deb $(BUILD)/deb

define libraries
from importlib.metadata import distribution
for name in ("pyOpenSSL", "cryptography", "systemd-python", "sdnotify", "aiohttp"):
    found = distribution(name)
    where = str(found.locate_file(""))
    if not where.startswith("/usr/lib/python3/"):
        raise SystemExit(f"{name} in {where} is not Debian's")
    print(name, found.version, end="  ")
print()
endef
export libraries

.PHONY: clean
clean: ## remove everything made here
	$(ROOT) rm -rf .cache
	rm -rf .venv .venv-debian $(BUILD) dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
