# Understudy. `make` alone lists what there is.
#
# Needs Python 3.11 or newer (any with the venv module) and make; everything else goes into .venv, pinned and hashed.
# Another Python: make setup PYTHON=python3.13

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUF_VERSION := 1.75.0
# Arguments for the command behind a target: make run ARGS="--upstream 10.0.0.5:6334", make test ARGS="tests/wal -x"
ARGS ?=
SEEDS ?= 0-1000

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup run test check format soak simulation museum coverage bench demo generate docs lock buf clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv with everything in it; a second call does nothing

$(STAMP): requirements/all.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "error: no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1), Understudy needs Python 3.11 or newer. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: '$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (the first time takes a minute or two)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/all.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

run: setup ## Start the proxy: a local store, or in front of Qdrant with ARGS="--upstream HOST:PORT"
	@exec $(BIN)/understudy serve $(ARGS)

test: setup ## Every test but the soak
	@$(BIN)/python -m pytest -m "not soak" $(ARGS)

check: setup buf ## What must pass before a commit: format, lint, types, contracts, generated code, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate.py --check
	$(BIN)/python tools/configuration.py --check
	$(BIN)/python -m tools.compatibility --check
	$(BIN)/python -m tools.states --check
	@$(BIN)/python -m pytest -m "not soak" $(ARGS)

buf: # Lints Understudy's own protos; says so when it cannot.
	@if command -v buf >/dev/null 2>&1; then echo "buf lint" && buf lint; \
	elif command -v npx >/dev/null 2>&1; then echo "buf lint (by npx)" && npx --yes @bufbuild/buf@$(BUF_VERSION) lint; \
	else echo "buf lint: NOT RUN, there is neither buf nor npx on this machine"; fi

format: setup ## Put the code in shape
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

soak: setup ## Hours of faults; not part of `make test`
	@$(BIN)/python -m pytest -m soak --timeout=0 $(ARGS)

simulation: setup ## The whole proxy on a virtual clock: 1,000 seeds (SEEDS=FIRST-LAST for others)
	@$(BIN)/python -m tests.simulation $(SEEDS) --jobs 2 $(ARGS)

museum: setup ## Deliberate bugs in log, failover and replay: each must turn a test red
	@$(BIN)/python -m tests.museum $(ARGS)

coverage: setup ## Every branch of server/wal must be taken by tests/wal
	@$(BIN)/python -m coverage run --source=server/wal --data-file=.coverage.wal -m pytest tests/wal -m "not soak" --timeout=0 $(ARGS)
	@$(BIN)/python -m coverage report --data-file=.coverage.wal --show-missing --skip-covered --fail-under=100

bench: setup ## Measure; writes docs/performance.md
	@$(BIN)/python -m bench $(ARGS)

demo: setup ## A whole outage on real data, in the terminal
	@$(BIN)/python -m examples.demo $(ARGS)

generate: setup ## Make generated/ from protos/
	@$(BIN)/python tools/generate.py

docs: setup ## Make docs/configuration.md, docs/compatibility.md and the states in docs/architecture.md from the code
	@$(BIN)/python tools/configuration.py
	@$(BIN)/python -m tools.compatibility
	@$(BIN)/python -m tools.states

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: setup ## Pin the newest allowed version of every dependency
	$(LOCK) --upgrade --all-extras pyproject.toml -o requirements/all.txt
	$(LOCK) pyproject.toml -c requirements/all.txt -o requirements/runtime.txt
	$(LOCK) requirements/build.in -c requirements/all.txt -o requirements/build.txt

clean: ## Remove .venv and caches; data in .understudy stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
