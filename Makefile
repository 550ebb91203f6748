# ryzc: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## compile SmolLM2 for this CPU and ask it a question
	$(BIN)/ryzc targets
	$(BIN)/ryzc run smollm2 "What is the capital of France? Answer in one sentence." --temp 0 -n 64 --verbose

test: $(VENV)/installed  ## the default suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/installed  ## the long checks
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
