# What a developer runs, and what CI runs. Everything lives in $(VENV); nothing is installed elsewhere, except
# that `make test` run by root adds the system packages below where they are missing.
#
#   make demo        a first look: a head, a small program on it, a clean stop
#   make test        format, lint, types, and all tests but the slow ones: what fits into a quarter of an hour on two cores
#   make test-slow   the slow ones: chaos, scale, full counts; then the API's tests again, from a driver on no node, with
#                    the work on another node, and under TLS; the results are in test-results/*.xml. Twenty minutes of
#                    it are one run in which everything breaks: see tests/chaos/test_long_run.py
#   make compat      tests/compat on Ray itself (in $(RAY_VENV)), as `make test` runs it on noded: "same meaning" is measured
#   make bench       against Ray and the standard library; BENCH="--only tasks" selects
#   make lint  make fmt  make clean

SHELL := /bin/bash
VENV ?= .venv
RAY_VENV ?= .venv-ray
# More than a small machine has cores: most tests wait for something most of the time.
WORKERS ?= 3
PYTEST ?=
BENCH ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# As root: `apt-get install` where the command is missing. Otherwise tests that need it are skipped and say so.
PACKAGES := ip:iproute2 nft:nftables openssl:openssl redis-server:redis-server prometheus:prometheus

.PHONY: demo test test-slow compat bench lint fmt clean venv packages
.DEFAULT_GOAL := test

venv: $(STAMP)

$(STAMP): pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    for name in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	        if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "noded needs Python 3.11 or newer, and none of python3, python3.11 … python3.14 is: install one, or" \
	             "name it with make PYTHON=/path/to/python3" >&2; exit 1; \
	    fi; \
	    echo "creating $(VENV) with $$("$$found" --version)"; \
	    if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi; \
	    "$$found" -m venv $(VENV) || { \
	        echo "$$found cannot create virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }; \
	fi; \
	echo "installing noded and its test tools into $(VENV)"; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-script-location -e '.[test]'; \
	touch $@

packages:
	@for pair in $(PACKAGES); do \
	    command -v "$${pair%%:*}" >/dev/null && continue; \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || continue; \
	    { apt-get update && apt-get install -y "$${pair##*:}"; } >/dev/null 2>&1 \
	        || echo "could not install $${pair##*:}: tests that need it are skipped"; \
	done

demo: venv
	@PATH="$(abspath $(BIN)):$$PATH" scripts/demo.sh

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint packages
	$(BIN)/pytest -n $(WORKERS) -m "not slow" $(PYTEST)

test-slow: venv packages
	@failed=0; again() { name=$$1; shift; echo "== $$name"; \
	    env "$$@" --junitxml=test-results/$$name.xml $(PYTEST) || failed=1; }; \
	again slow $(BIN)/pytest -m slow; \
	again compat-remote COMPAT_PLACE=remote $(BIN)/pytest -n $(WORKERS) tests/compat; \
	again compat-elsewhere COMPAT_PLACE=elsewhere $(BIN)/pytest -n $(WORKERS) tests/compat; \
	again tls NODED_TEST_TLS=1 $(BIN)/pytest -n $(WORKERS) -m "not slow" tests/compat tests/e2e; \
	exit $$failed

compat: venv
	@[ -x $(RAY_VENV)/bin/ray ] || { echo "installing Ray into $(RAY_VENV)"; \
	    bench/setup_ray.sh "$(abspath $(BIN))/python" "$(abspath $(RAY_VENV))"; }
	@$(RAY_VENV)/bin/python -c 'import joblib, numpy, pytest, pytest_timeout' 2>/dev/null \
	    || $(RAY_VENV)/bin/python -m pip install -qq --disable-pip-version-check joblib numpy pytest pytest-timeout
	COMPAT_PEER=ray $(RAY_VENV)/bin/python -m pytest -c tests/compat/ray.toml tests/compat $(PYTEST)

bench: venv
	$(BIN)/python bench/run.py $(BENCH)

fmt: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the environment: remove $(VENV) by hand to start anew.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find noded tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
