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

# Peers are built for this CPU, as their users are told to: the wheels that they publish are not.
$(VENV)/bench-installed: $(VENV)/installed
	CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/pip install --quiet --no-binary llama-cpp-python -e '.[bench]'
	touch $@

bench: $(VENV)/bench-installed  ## ryzc against llama.cpp on SmolLM2, interleaved; minutes, on an idle machine
	$(BIN)/ryzc build smollm2 -o build/smollm2.ryzc
	$(BIN)/python -m benchmarks.compare "$$($(BIN)/ryzc pull smollm2)" build/smollm2.ryzc -t 1
	$(BIN)/python -m benchmarks.compare "$$($(BIN)/ryzc pull smollm2)" build/smollm2.ryzc -t 2

clean:
	rm -rf $(VENV) build dist *.egg-info
