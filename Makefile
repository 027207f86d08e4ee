# The two commands that matter are `make cars` and `make test`; `make help` lists the rest.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DIST   ?= dist
# What a training and what an export depend on; an edit elsewhere repeats neither.
TRAINS  := $(shell find toolchain/training toolchain/recipe toolchain/pictures models \
           -name '*.py' -o -name '*.safetensors')
EXPORTS := $(shell find toolchain/export toolchain/bundle toolchain/device/runtime \
           toolchain/device/engine toolchain/device/boards -name '*.py')
# Threads that wait shall sleep: on a shared machine spinning ones make training ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.DELETE_ON_ERROR:
.PHONY: help cars digits device samples test test-full test-power fuzz test-gpu lint types wheel bench accuracy natural bench-gpu test-zoo clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# -- the environment ---------------------------------------------------------------------------

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@echo "-- making $(VENV) from constraints.txt"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# -- one domain: train, export, check ------------------------------------------------------------

cars: build/domains/cars/adaptor.json $(DIST)/cars.da3b  ## train and export the sample domain `cars`
	@$(BIN)/da3 inspect $(DIST)/cars.da3b --brief

digits: build/domains/digits/adaptor.json $(DIST)/digits.da3b  ## the same for real handwritten digits
	@$(BIN)/da3 inspect $(DIST)/digits.da3b --brief

device: build/domains/cars/adaptor.json $(DIST)/cars.da3b  ## sign `cars`, and walk a device through updates
	@$(BIN)/python -m benchmarks.device_walk --dist $(DIST)

samples: $(foreach d,cars digits chirps cells,$(DIST)/$(d).da3b)  ## all four sample domains

build/domains/%/adaptor.json: recipes/%.yaml $(STAMP) $(TRAINS)
	$(BIN)/da3 train --domain $* --out build/domains/$* --overwrite

$(DIST)/%.da3b: build/domains/%/adaptor.json $(EXPORTS)
	$(BIN)/da3-export --domain $* --checkpoint build/domains/$* --dist $(DIST) --overwrite > /dev/null

.PRECIOUS: build/domains/%/adaptor.json $(DIST)/%.da3b

# -- quality -------------------------------------------------------------------------------------

# One thread for each worker. Three workers keep two cores busy: one of them often waits, for a
# process that it started or for a limit on time.
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)  ## every test that needs no GPU
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not full'

test-full: $(STAMP)  ## the tests at full sizes; ten minutes and a few gigabytes
	$(BIN)/python -m pytest -m full

test-power: $(STAMP)  ## power cuts in a device's store, at every call; needs strace and fuse3
	$(BIN)/python -m pytest -q -s -m full tests/device/store/test_power.py

fuzz: $(STAMP)  ## a million inputs to every reader of foreign bytes; needs `pip install atheris`
	$(BIN)/python -m tests.fuzz $(FUZZ)

test-gpu: $(STAMP)  ## the tests that need an NVIDIA GPU and TensorRT
	$(BIN)/python -m pytest -m gpu

lint: $(STAMP)  ## ruff, over everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict, over everything
	$(BIN)/mypy
	@# JetPack 6 has Python 3.10. What the stubs of numpy say is for later ones, so it is left out.
	$(BIN)/mypy --python-version 3.10 --no-warn-return-any --no-warn-unused-ignores \
		-p toolchain

wheel: $(STAMP)  ## build the wheel into build/wheel
	rm -rf build/wheel build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .

bench: $(STAMP)  ## the figures of the README, into build/bench/ and docs/results.md
	@mkdir -p build/bench
	$(BIN)/da3 bench --backbone resnet50 --input 224 --domains 10 \
		--json build/bench/runtime.json --html build/bench/runtime.html
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.device

accuracy: $(STAMP)  ## all methods on the sample domains, three seeds; an hour or two, resumable
	@mkdir -p build/bench
	$(BIN)/python -m benchmarks.accuracy

natural: $(STAMP)  ## all methods on real pictures and ImageNet weights; many hours, resumable
	@mkdir -p build/bench
	$(BIN)/da3 backbones fetch efficientnet_lite0 $(FROM)
	$(BIN)/python -m benchmarks.natural $(NATURAL)
	$(BIN)/python -m benchmarks.ablations

bench-gpu: $(STAMP)  ## engines: building, and on a GPU parity, skipping, swapping, latency
	@mkdir -p build/bench
	$(BIN)/python -m benchmarks.engine

# -- real models: an environment of its own, as the zoos need another build of torch ----------------

ZOO := .venv-zoo/bin

.venv-zoo/.installed: constraints-zoo.txt setup.cfg pyproject.toml
	@echo "-- making .venv-zoo from constraints-zoo.txt (about 5 GB)"
	@test -x $(ZOO)/python || $(PYTHON) -m venv .venv-zoo
	$(ZOO)/python -m pip install --quiet --disable-pip-version-check -c constraints-zoo.txt \
		-e '.[export]' torchvision timm transformers
	@touch $@

test-zoo: .venv-zoo/.installed  ## models of torchvision, timm and transformers; 5 GB, half an hour
	OMP_NUM_THREADS=1 $(ZOO)/python -m tests.zoo

clean:  ## remove what was built, keep the environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
