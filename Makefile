# Thin names for the commands in the README. Everything runs in .venv, made from the pinned constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sweep test test-slow lint bench bench-laws bench-preflight bench-sharding bench-sweep chaos clean

sweep: $(VENV)/.installed
	$(BIN)/python -m experiments.sweep --config=quickstart --root=runs/quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.installed-bench
	$(BIN)/python -m experiments.bench.step

bench-laws: $(VENV)/.installed-bench-laws
	$(BIN)/python -m experiments.bench.laws

bench-preflight: $(VENV)/.installed-bench-preflight
	$(BIN)/python -m experiments.bench.preflight

bench-sharding: $(VENV)/.installed
	$(BIN)/python -m experiments.bench.sharding

bench-sweep: $(VENV)/.installed
	$(BIN)/python -m experiments.bench.sweep

chaos: $(VENV)/.installed-test
	$(BIN)/python -m experiments.bench.chaos

clean:
	rm -rf $(VENV) runs

# --no-compile: bytecode is written at first use, which saves a third of the installation.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) -e ".[bench]"
	touch $@

$(VENV)/.installed-bench-laws: $(VENV)/.installed
	$(INSTALL) -e ".[bench-laws]"
	touch $@

$(VENV)/.installed-bench-preflight: $(VENV)/.installed
	$(INSTALL) -e ".[preflight]"
	touch $@
