# make setup · make train [ARGS="--env Pendulum-v1"] · make test · make test-all · make check

BIN := .venv/bin
INSTALLED := .venv/.installed
ARGS ?=

# The first Python of a supported version; `make setup PYTHON=...` names another.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $(python))))

.PHONY: setup train test test-all check

setup: $(INSTALLED)

train: setup
	$(BIN)/python launch.py --num-actors 16 $(ARGS)

test: setup
	$(BIN)/python -m pytest -m "not costly" --numprocesses 2 --dist loadgroup $(ARGS)

test-all: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not (slow or ray or costly)" --numprocesses auto --dist loadgroup $(ARGS)

$(INSTALLED): requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; name one: make setup PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --only-binary=:all: --quiet -r requirements-dev.txt
	@touch $@
