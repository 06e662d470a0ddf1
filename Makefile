# `make bench` and `make test` each set up everything they need in .venv; `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLUGINS := plugins/infer_llama plugins/infer_qwen3 plugins/infer_gemma3
EXAMPLES := $(wildcard examples/infer_*)
PACKAGES := infer_core bench/infer_bench \
	$(foreach plugin,$(PLUGINS) $(EXAMPLES),$(plugin)/$(notdir $(plugin)))
SUITE ?= quick

# The first interpreter that is new enough; `make PYTHON=/path/to/python3` overrides.
NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)

.PHONY: help install bench test lint types clean

help:
	@echo 'make bench    benchmark every plugin here (SUITE=quick|standard|full, default quick)'
	@echo 'make test     run the tests (ARGS="-k rope" is passed to pytest)'
	@echo 'make lint     ruff: rules and formatting'
	@echo 'make types    mypy --strict'
	@echo 'make install  only set up .venv'
	@echo 'make clean    remove .venv and every cache'
	@echo 'PYTHON=/path/to/python3 picks the interpreter .venv is made from (3.11 or newer)'

bench: $(INSTALLED)
	$(BIN)/infer-bench --suite $(SUITE)

# One thread a process: two workers whose torch also spreads over both cores are slower than one.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy $(PACKAGES)

install: $(INSTALLED)

# The stamp is newer than what it was made from, so a second run installs nothing. A .venv that
# cannot run pip (an interrupted set-up, a removed interpreter) is made anew.
$(INSTALLED): pyproject.toml $(PLUGINS:=/pyproject.toml) constraints.txt
	@'$(PYTHON)' -c $(NEW_ENOUGH) 2>/dev/null || { \
		echo "make: Python >= 3.11 is needed, but" \
			"$(if $(PYTHON),$(PYTHON) is `'$(PYTHON)' --version 2>&1`,none is on the PATH);" \
			"install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: '$(PYTHON)' cannot make virtual environments; install its venv module" \
			"(Debian, Ubuntu: apt install python3-venv), or name another: make PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -c "import pip; exec($(NEW_ENOUGH))" 2>/dev/null || '$(PYTHON)' -m venv --clear $(VENV)
	@echo 'installing into $(VENV) (the first time this downloads torch)'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt \
		-e '.[test,lint]' $(PLUGINS:%=-e %)
# pip would do this on one core; files for a newer Python fail, there as here
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
