# ryzc: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-thorough test-slow api-coverage lint peers bench bench-all clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## compile SmolLM2 for this CPU and ask it a question
	$(BIN)/ryzc targets
	$(BIN)/ryzc run smollm2 "What is the capital of France? Answer in one sentence." --temp 0 -n 64 --verbose

test: $(VENV)/installed  ## the default suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not thorough" -o faulthandler_timeout=300

test-thorough: $(VENV)/installed  ## more models, targets and shapes of what the default suite has some of
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "thorough and not slow" -o faulthandler_timeout=300

test-slow: $(VENV)/installed  ## the long checks, one at a time: some of them measure time
	$(BIN)/python -m pytest -m slow

api-coverage: $(VENV)/installed  ## run others' suites against the server and write docs/api-coverage.md; two minutes
	PYTHONPATH=tests $(BIN)/python -m conformance.table

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bench-installed: $(VENV)/installed
	$(BIN)/pip install --quiet -e '.[bench]'
	touch $@

# Peers are built for this CPU, as their users are told to: the wheels that they publish are not.
peers: $(VENV)/bench-installed  ## build llama.cpp and ik_llama.cpp into the cache; ten minutes, once
	$(BIN)/python -m benchmarks.peers.build

bench: peers  ## ryzc against its peers on SmolLM2, interleaved, on one thread and two; minutes, on an idle machine
	$(BIN)/python -m benchmarks.suite --models smollm2 -t 1,2 -r 3 --quick

bench-all: peers  ## every model, prompts and contexts of 4,096 and 16,384 tokens too; hours
	$(BIN)/python -m benchmarks.suite -t 1,2

clean:
	rm -rf $(VENV) build dist *.egg-info
