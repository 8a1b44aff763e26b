# Every target works from a bare clone: Python 3.11 or later, make and a package index are all it needs.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= runs
PREPARED := $(RUNS)/prepared
SIMULATED := $(PREPARED)/simulated/1.0.0
DEMO := $(RUNS)/demo
SLOW_TIMEOUT ?= 3500
# Compiling keeps one core of a process busy, and long tests wait much, so tests run in two.
WORKERS ?= 2

# Tests compile far more than they compute: both stages and all their processes share compiled programs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache

PAPER := $(RUNS)/paper_cpu
SWEEP = $(BIN)/python -m experiments.label_sweep --config=configs/paper_cpu.py --dataset=$(SIMULATED) --jobs=2

.PHONY: help install demo paper-cpu paper-cpu-tuning real-cpu real-cpu-tuning test test-slow fuzz lint format clean

help:
	@echo "make demo       install into $(VENV), simulate, pretrain, evaluate; open $(DEMO)/report.html"
	@echo "make test       install, lint, check import layers and types, run the fast tests"
	@echo "make test-slow  run the long tests: kills, several processes, the whole demo"
	@echo "make fuzz       throw more than 10,000 generated bad inputs at every door"
	@echo "make paper-cpu  the comparison of methods in experiments/results: a night on two cores; goes on where it was"
	@echo "make real-cpu REAL=DIR  the comparison on real data: a night on two cores; goes on where it was"
	@echo "make lint | format | clean"

install: $(READY)

$(READY): requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d found, 3.11 or later is needed: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m data.prepare simulated --out=$(PREPARED) --num_tiles=10000
	$(BIN)/python -m fusionx_jax pretrain --config=configs/demo.py --workdir=$(DEMO) --config.dataset=$(SIMULATED)
	$(BIN)/python -m fusionx_jax evaluate --workdir=$(DEMO) --dataset=$(SIMULATED)
	$(BIN)/python -m fusionx_jax report --workdir=$(DEMO)

paper-cpu: $(READY)
	$(BIN)/python -m data.prepare simulated --out=$(PREPARED) --num_tiles=10000
	$(BIN)/python -m configs.paper_cpu | xargs -L1 $(SWEEP) --workdir=$(PAPER)
	$(SWEEP) --workdir=$(PAPER)_bands --methods=fusionx_bands --config.evaluate.evaluators="('linear_probe',)" --config.evaluate.tasks="('multi',)"
	$(BIN)/python -m fusionx_jax report --workdir=$(PAPER)

paper-cpu-tuning: $(READY)
	$(BIN)/python -m data.prepare simulated --out=$(PREPARED) --num_tiles=10000
	$(BIN)/python -m configs.paper_cpu tuning | xargs -L1 $(SWEEP) --workdir=$(PAPER)_tuning

real-cpu: $(READY)
	@test -d "$(REAL)" || { echo "make real-cpu REAL=DIR: DIR holds oscd and bigearthnet120, see data/oscd/README.md"; exit 2; }
	$(BIN)/python -m experiments.real --raw=$(REAL) --workdir=$(RUNS)/real --prepared=$(PREPARED)/real

real-cpu-tuning: $(READY)
	$(BIN)/python -m experiments.real --raw=$(REAL) --workdir=$(RUNS)/real --prepared=$(PREPARED)/real --tuning

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(BIN)/python -m pytest -m "not slow" --timeout=600 -n $(WORKERS) --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout=$(SLOW_TIMEOUT) -n $(WORKERS) --dist loadfile

# Ten times as many generated bad inputs as in `make test`, other ones each time: about 20 minutes.
fuzz: $(READY)
	FUZZ=10 $(BIN)/python -m pytest tests/fuzz --timeout=$(SLOW_TIMEOUT) -n $(WORKERS) --dist loadfile

clean:
	rm -rf .venv .venv-* $(RUNS) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .jax_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
