# `make demo` and `make test` do everything from a fresh clone; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILDING := $(VENV)/.building
# What the models of `make zoo` come from.
ZOO := $(VENV)/zoo
# For example: make test ARGS="-x -k targets"
ARGS ?=
# Processes that share the quick tests; each needs about 2 GiB. One more than cores, as some wait.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help demo test test-full accept lint format bench bench-parts bench-auto lock clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## train, compress, convert and verify a small CNN on real data
	$(BIN)/tfcompress demo $(ARGS)

test: $(READY)  ## quick tests
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-full: $(READY)  ## every test and every tutorial
	$(BIN)/python -m pytest $(ARGS)

accept: $(READY)  ## run real third-party tools on files of five models (the first time: long)
	$(BIN)/python -m tfcompress.bench.acceptance $(ARGS)

lint: $(READY)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## compare methods of compression on the digits (short form; ARGS="--seeds 3" for more)
	$(BIN)/tfcompress bench --short $(ARGS)

bench-parts: $(READY)  ## measure the cost of training and conversion, how equal files are, and what is lost
	PYTHONPATH=tests $(BIN)/python -m measurements $(ARGS)

bench-auto: $(READY)  ## search for the nets of MLPerf Tiny within half of what int8 takes (three hours)
	PYTHONPATH=tests $(BIN)/python -m measurements auto_budgets $(ARGS)

zoo: $(ZOO)/.ready  ## what becomes of models from KerasHub and other packages: docs/zoo.md
	PYTHONPATH=tests:$(ZOO) $(BIN)/python -m measurements zoo --write $(ARGS)

# Beside the packages of requirements.lock, which stay as they are.
$(ZOO)/.ready: tests/zoo/requirements.txt $(READY)
	rm -rf $(ZOO)
	$(BIN)/pip install --quiet --no-deps --target $(ZOO) -r tests/zoo/requirements.txt
	@touch $@

demo test test-full accept bench bench-parts bench-auto zoo: export TF_CPP_MIN_LOG_LEVEL = 3
# Tests must give the same numbers on every machine.
test test-full zoo: export CUDA_VISIBLE_DEVICES =

# Existing pins are kept: `make lock ARGS=--upgrade` takes the newest versions instead.
lock:  ## write requirements.lock anew from setup.cfg
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp"; \
	"$$tmp/bin/pip" install --quiet uv; \
	PATH="$$tmp/bin:$$PATH"; \
	uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-annotate \
	  --no-emit-index-url --no-emit-find-links setup.cfg -o requirements.lock $(ARGS)

clean:  ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .ready is written last, so that an interrupted set-up never counts as done; .building tells the
# next try that what it finds is incomplete and has to go, as has an environment of another Python.
$(READY): requirements.lock setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: tfcompress needs Python 3.10 to 3.13; say which one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "tfcompress needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())'): say which one: make PYTHON=python3.11" >&2; exit 1; }
	@set -e; rm -f $@; version='import sys; print(sys.version_info[:2])'; \
	if [ -e $(BUILDING) ] || [ "$$($(BIN)/python -c "$$version" 2>&1)" != "$$($(PYTHON) -c "$$version")" ]; \
	then rm -rf $(VENV); fi; \
	mkdir -p $(VENV); touch $(BUILDING); \
	echo "Setting up $(VENV) from requirements.lock: about a minute the first time"; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	rm $(BUILDING); touch $@
