# Everything a newcomer needs: `make train` and `make test` set up what is missing by themselves.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# The lower ends of pyproject.toml (tests/oldest.txt), in an environment of their own.
OLDEST_PYTHON ?= $(or $(shell command -v python3.11),$(PYTHON))
OLDEST_VENV ?= .venv-oldest
# cuBLAS reads it once; reproducible sums on a GPU need it.
export CUBLAS_WORKSPACE_CONFIG ?= :4096:8

.PHONY: train test test-oldest lint spectrum gpu gpu-prepare gpu-report gpu-tests gpu-kernels gpu-estimator gpu-training links-for-package-index clean

# Train on the embedded default; ARGS are options of train.py, e.g. make train ARGS="--beta 10".
train: $(VENV)/.ready
	$(PY) train.py $(ARGS)

# The whole suite, benchmarks at toy size included. Each worker computes on one thread.
test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

# The suite with the oldest supported versions of everything.
test-oldest: $(OLDEST_VENV)/.ready
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -n auto

lint: $(VENV)/.ready-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m validate_pyproject pyproject.toml
	$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(PY) -m cibuildwheel --print-build-identifiers --platform linux .
	$(PY) -m check_jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Sweep of the two embedded data sets, all figures, the report, and the check of the paper's findings.
spectrum: $(VENV)/.ready-dev
	$(PY) -m benchmarks spectrum --full $(ARGS)

# On a machine with a GPU: every part of the prepared run without limits, then its result files and tables, whatever
# failed. Needs torch, torchvision, triton, timm, numpy and scikit-learn, and no installation: GPU_PYTHON names the
# interpreter that has them. `gpu-run --minutes N` is for a machine that is lent for minutes (CONTRIBUTING.md).
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))
GPU_BENCHMARKS := PYTHONPATH=.:kernels $(GPU_PYTHON) -m benchmarks
FOLDER ?= runs/gpu
gpu:
	-$(GPU_BENCHMARKS) gpu-run --out $(FOLDER)
	$(MAKE) gpu-report

# Without a GPU: compile for sm_90 with the triton of GPU_PYTHON, and pack into .gpu/. Its keys hold on another machine
# if triton is the same there, libtriton.so included: the same version for the same Python.
gpu-prepare:
	$(GPU_BENCHMARKS) gpu-prepare

gpu-report:
	$(GPU_BENCHMARKS) gpu-report $(FOLDER)

# One process: the bottleneck's tests share out their compilation by themselves.
gpu-tests:
	$(GPU_PYTHON) -m pytest -m gpu tests/ops tests/kernels tests/information tests/training/test_gpu.py

gpu-kernels: benchmark-bottleneck

gpu-estimator: benchmark-mixture

gpu-training:
	$(MAKE) --keep-going benchmark-train benchmark-top-kernels benchmark-scaling

# `python -m benchmarks` lists them all.
benchmark-%:
	PYTHONPATH=.:kernels $(GPU_PYTHON) -m benchmarks $* --full

# $(call install,FOLDER,PYTHON,WHAT): this checkout, editable, in an environment of its own.
define install
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(2) $(1) && uv pip install --quiet --python $(1)/bin/python $(3); \
	else \
		$(2) -m venv $(1) && $(1)/bin/python -m pip install --quiet --disable-pip-version-check $(3); \
	fi
	@touch $@
endef

SOURCES := pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)
$(VENV)/.ready: $(SOURCES)
	$(call install,$(VENV),$(PYTHON),-e '.[digits$(,)figures]')
$(VENV)/.ready-dev: $(SOURCES)
	$(call install,$(VENV),$(PYTHON),-e '.[dev]')
	@touch $(VENV)/.ready
$(OLDEST_VENV)/.ready: $(SOURCES) tests/oldest.txt
	$(call install,$(OLDEST_VENV),$(OLDEST_PYTHON),-c tests/oldest.txt -e '.[dali$(,)test]')

, := ,

# Links to this repository as absolute ones below BASE: a package index shows README.md and has none of its files.
links-for-package-index:
	sed -E -i.relative 's@\]\(([^):#]+)\)@](${BASE}/\1)@g' README.md && rm README.md.relative

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build kernels/ibvit_kernels/*.so
