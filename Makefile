# reptool's habits. A fresh machine needs Python 3.10 or newer (with venv), make and pip's usual access to packages.
#
# Virtual environments, each made by the first target that needs it and again when pyproject.toml changes:
#   .venv         PyTorch for the CPU, and everything but the public model collections
#   .venv-models  a PyTorch release that a torchvision release exists for, timm and torchvision (about 6 GB)
#   .venv-integrations  the same, and libraries that deployed models are used in (about 7 GB)
#   .venv-bare    PyTorch and what the wheel asks for by itself: what a new user has
#   .venv-oldest  the oldest PyTorch that is supported (from PyPI on Linux x86-64 a CUDA build, about 6 GB)
#
# Where pip finds a CPU build of $(TORCH) it takes that; from PyPI the same line works and brings whatever build
# PyPI has for the platform (on Linux x86-64 a CUDA one of several GB, which runs on the CPU as well). pip's own
# settings (PIP_FIND_LINKS, PIP_INDEX_URL, pip.conf) choose another source; TORCH=... chooses another release.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_MODELS ?= torch==2.14.1 torchvision==0.29.1
TORCH_OLDEST ?= torch==2.8.0
WORKERS ?= 2
SECONDS ?= 300
MODEL ?= timm:repvgg_a0
ARGS ?=

VENV := .venv
VENV_MODELS := .venv-models
VENV_BARE := .venv-bare
VENV_INTEGRATIONS := .venv-integrations
VENV_OLDEST := .venv-oldest
READY := $(VENV)/.ready
READY_MODELS := $(VENV_MODELS)/.ready
READY_BARE := $(VENV_BARE)/.ready
READY_INTEGRATIONS := $(VENV_INTEGRATIONS)/.ready
READY_OLDEST := $(VENV_OLDEST)/.ready

# One thread for each of the processes that pytest runs side by side.
PYTEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST_ARGS := -n $(WORKERS) --dist worksteal --durations=10

# What PyTorch and its libraries may use of an x86 processor; elsewhere they ask for nothing of this.
SSE4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.DEFAULT_GOAL := help
.PHONY: help demo demo-model test test-slow test-models integrations test-install test-processors test-oldest fuzz perturb prove lint types format docs bench bench-quick zoo clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'

demo: $(READY) ## train a small network, collapse it, check every prediction, export, compare
	$(VENV)/bin/python -m reptool.demo $(ARGS)

demo-model: $(READY_MODELS) ## the same for somebody else's model, MODEL=timm:repvgg_a0 (timm:, torchvision:, package.module:callable)
	$(VENV_MODELS)/bin/python -m reptool.demo --model '$(MODEL)' $(ARGS)

test: $(READY) ## all tests but the slow ones and those of public models
	$(PYTEST_ENV) $(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m "not models and not slow" $(ARGS)

test-slow: $(READY) ## the slow ones: trainings, two processes, compilers, more random networks
	$(PYTEST_ENV) $(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m "slow and not models" $(ARGS)

test-models: $(READY_MODELS) ## the tests of public models
	$(PYTEST_ENV) $(VENV_MODELS)/bin/python -m pytest $(PYTEST_ARGS) -m models $(ARGS)

test-processors: $(READY) ## the random networks once more, as on processors without AVX2 and without AVX-512
	$(PYTEST_ENV) $(SSE4) $(VENV)/bin/python -m pytest -n $(WORKERS) -m fuzz tests/test_networks.py $(ARGS)
	$(PYTEST_ENV) $(AVX2) $(VENV)/bin/python -m pytest -n $(WORKERS) -m fuzz tests/test_networks.py $(ARGS)

integrations: $(READY_INTEGRATIONS) ## deployed models in transformers, Lightning, timm, torchvision, ultralytics, OpenVINO, ExecuTorch, torchao
	$(PYTEST_ENV) $(VENV_INTEGRATIONS)/bin/python -m pytest -n 0 tests/test_integrations.py tests/ship/test_runtimes.py tests/ship/test_export.py $(ARGS)

test-install: $(READY) $(READY_BARE) ## wheel and source archive, built; the wheel alone in an empty environment runs the docs
	rm -rf build dist
	@mkdir dist && $(VENV)/bin/python -m build --outdir dist > dist/build.log 2>&1 || (cat dist/build.log; exit 1)
	$(VENV_BARE)/bin/python -m pip install --quiet dist/*.whl
	$(VENV_BARE)/bin/python -m pip install --quiet --no-deps --force-reinstall dist/*.whl
	$(VENV_BARE)/bin/python -I tests/bare.py dist/*.tar.gz

test-oldest: $(READY_OLDEST) ## the tests with the oldest PyTorch that is supported
	$(PYTEST_ENV) $(VENV_OLDEST)/bin/python -m pytest $(PYTEST_ARGS) -m "not models" $(ARGS)

fuzz: $(READY) ## random whole networks for SECONDS=300, printing a reproducer on failure
	$(VENV)/bin/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

perturb: $(READY) ## change random deployed networks and their originals alike for SECONDS=300: they agree or reptool raises
	$(VENV)/bin/python -m tests.fuzz --perturb --seconds $(SECONDS) $(ARGS)

prove: $(READY) ## prove the exactness conditions of the laws (z3), and show for each refusal why it is needed
	$(VENV)/bin/python -m tests.prove

lint: $(READY) ## ruff: rules and format; import-linter: imports point down the list of packages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(READY) ## mypy, strict
	$(VENV)/bin/mypy

format: $(READY) ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(READY) ## build the documentation into site/, a broken link being an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

bench: $(READY_MODELS) ## time deploy() and its results beside torch.fx and timm on public models, into docs/benchmarks.md
	$(VENV_MODELS)/bin/python benchmarks/side_by_side.py --output docs/benchmarks.md $(ARGS)
	$(VENV_MODELS)/bin/python benchmarks/optional_arguments.py

bench-quick: $(READY_MODELS) ## the same of three models, in less than five minutes
	$(VENV_MODELS)/bin/python benchmarks/side_by_side.py --quick --output docs/benchmarks.md $(ARGS)

zoo: $(READY_MODELS) ## deploy a list of public models and show what was left in each
	$(VENV_MODELS)/bin/python benchmarks/zoo.py $(ARGS)

clean: ## remove the environments and every cache
	rm -rf $(VENV) $(VENV_MODELS) $(VENV_INTEGRATIONS) $(VENV_BARE) $(VENV_OLDEST) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@echo "setting up $(VENV): $(TORCH) and the packages for tests, demo, checks and docs; once, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(TORCH)
	$(VENV)/bin/python -m pip install --quiet -e '.[test,demo,lint,docs,release]'
	@touch $@

$(READY_MODELS): pyproject.toml
	@echo "setting up $(VENV_MODELS): $(TORCH_MODELS), timm and the packages for tests and demo; once, about 6 GB"
	$(PYTHON) -m venv $(VENV_MODELS)
	$(VENV_MODELS)/bin/python -m pip install --quiet $(TORCH_MODELS)
	$(VENV_MODELS)/bin/python -m pip install --quiet -e '.[test,demo,models]'
	@touch $@

$(READY_INTEGRATIONS): pyproject.toml
	@echo "setting up $(VENV_INTEGRATIONS): $(TORCH_MODELS) and libraries that deployed models are used in; once, about 7 GB"
	$(PYTHON) -m venv $(VENV_INTEGRATIONS)
	$(VENV_INTEGRATIONS)/bin/python -m pip install --quiet $(TORCH_MODELS)
	$(VENV_INTEGRATIONS)/bin/python -m pip install --quiet -e '.[test,demo,integrations]'
	@touch $@

$(READY_BARE): pyproject.toml
	@echo "setting up $(VENV_BARE): $(TORCH) and nothing else"
	rm -rf $(VENV_BARE)
	$(PYTHON) -m venv $(VENV_BARE)
	$(VENV_BARE)/bin/python -m pip install --quiet $(TORCH)
	@touch $@

$(READY_OLDEST): pyproject.toml
	@echo "setting up $(VENV_OLDEST): $(TORCH_OLDEST) and the packages for tests and demo; once, up to 6 GB"
	$(PYTHON) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/python -m pip install --quiet $(TORCH_OLDEST)
	$(VENV_OLDEST)/bin/python -m pip install --quiet -e '.[test,demo]'
	@touch $@
