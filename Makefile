# On a fresh machine, `make demo` and `make test` do everything. Each creates .venv and installs what it needs;
# a second run installs again only if pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
# Windows has programs in another folder.
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
DEMO ?= demo
PYTHONS ?= 3.10 3.12 3.13
WORKERS ?= 2
MINUTES ?= 120
DATA ?= sample:dial sample:board sample:fabric

.PHONY: help install demo bench-archive bench-runtime bench-peers bench-detection bench-false-alarms bench-anomalib bench-line bench-serve test test-anomalib test-archive test-runtime test-line test-serve test-lowest test-windows-semantics check-gpu lint format build constraints-hashed licences sbom soak clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(VENV)/installed ## create .venv with everything in it

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "==> installing into $(VENV): a few minutes and about 3 GB, the first time only"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## train, export, benchmark and inspect sample images; into demo/
	$(BIN)/vae-edge demo --out $(DEMO)

bench-runtime: install ## the Detector compared with the bare runtimes: overhead, throughput, start, memory; into bench/
	$(BIN)/python -m vae_edge.benchmarks.studies.peers.overhead --environments --out bench

bench-peers: install ## the same weights in the bare runtimes and in anomalib, side by side; 2.5 GB and 20 minutes; into bench/peers/
	$(BIN)/python -m vae_edge.benchmarks.studies.peers.command --out bench/peers $(PEERS)

bench-anomalib: ## the same checkpoint in anomalib and as bundles: AUROC, verdicts, start, memory, images/s, on DATA=DIR; into bench/anomalib
	bash tests/anomalib/run.sh $(PYTHON) .venv-anomalib -- -m vae_edge.benchmarks.studies.anomalib_check $(DATA) --out bench/anomalib

bench-line: install ## 5,000 verdicts over MQTT, OPC UA and a webhook while broker, client and service are killed; into bench/line
	@command -v mosquitto /usr/sbin/mosquitto >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto; }
	$(BIN)/python -m tests.line_acceptance --out bench/line

soak: install ## MINUTES=120 of watch, stream and serve (with .venv-serve) while files are torn, disks fill, processes are killed, clocks jump; into bench/soak
	@command -v mosquitto /usr/sbin/mosquitto >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto; }
	$(BIN)/python -m tests.soak.command --minutes $(MINUTES) --out bench/soak

bench-false-alarms: install ## the false-alarm rate of RUN=runs/tile on unused normals, over random divisions of its held-out ones
	$(BIN)/python -m vae_edge.benchmarks.studies.false_alarms $(RUN)

bench-detection: install ## how well defects are found, each component switched off in turn, on DATA="DIR ..."; DETECTION="--peers all" beside anomalib's; takes hours, continues after Ctrl-C; into bench/detection
	$(BIN)/python -m vae_edge.benchmarks.studies.detection.command $(DATA) --out bench/detection $(DETECTION)

bench-serve: ## 2,000 pictures from 8 clients through `vae-edge serve`, beside Detector.stream; PICTURES=N, BUNDLE=DIR; in .venv-serve
	@bash tests/serve/run.sh $(PYTHON) .venv-serve -- -m tests.serve.measure $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(PICTURES),--pictures $(PICTURES))

bench-archive: ## PICTURES=20000 on three Ray nodes, one killed, and the driver; rates beside vae-run; BUNDLE=DIR; in .venv-archive, into bench/archive
	@bash tests/archive/run.sh $(PYTHON) .venv-archive -- -m tests.archive.acceptance --out bench/archive $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(PICTURES),--pictures $(PICTURES))

test-archive: ## the tests of `vae-edge archive` on Ray, in .venv-archive: 1 GB
	@bash tests/archive/run.sh $(PYTHON) .venv-archive

test-anomalib: ## the tests with anomalib, in .venv-anomalib: several GB; skipped, with the reason, if it cannot be installed
	bash tests/anomalib/run.sh $(PYTHON) .venv-anomalib

test: install ## all tests that need no GPU, in WORKERS processes of one thread each; COVERAGE=1 adds line coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" --numprocesses $(WORKERS) --dist loadfile $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

test-line: install ## the tests of MQTT, OPC UA, Modbus and webhooks; installs Debian's mosquitto where it is missing (as root)
	@command -v mosquitto /usr/sbin/mosquitto >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto; }
	$(BIN)/python -m pytest tests/vae_edge/sinks/line tests/vae_edge/cli/test_run_line.py

test-serve: ## the tests of `vae-edge serve`, in .venv-serve: 0.5 GB
	@bash tests/serve/run.sh $(PYTHON) .venv-serve

test-runtime: ## the tests of the device side, without torch, on each installed one of PYTHONS="3.10 3.12 3.13"
	@for version in $(PYTHONS); do $(PYTHON) tests/packaging/runtime_tests.py $$version || exit 1; done

test-lowest: ## the same with the lowest versions that pyproject.toml allows, on Python 3.10
	@$(PYTHON) tests/packaging/runtime_tests.py 3.10 lowest

test-windows-semantics: install ## tests under Windows' rules for files, locks, names and signals; all of them with WINDOWS="tests/vae_edge tests/export"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.windows_semantics.plugin -q -m "not gpu and not slow" $(or $(WINDOWS),@tests/windows_semantics/in_ci.txt)

check-gpu: install ## a check on an NVIDIA GPU, eight minutes at most: tests, ways to its memory, torch, ONNX Runtime, TensorRT, selfcheck; into gpu-check/
	@PYTHON=$(BIN)/python bash tests/gpu/check.sh

test-arm: install ## verdicts, and the runtime's tests, on an emulated Arm processor (qemu-user-static) with JetPack's versions; 1.5 GB, an hour or two
	@PYTHON=$(BIN)/python bash tests/arm/run.sh

lint: install ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: install ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: install ## sdist and wheel, the same bytes from the same sources, into dist/
	$(BIN)/python tests/packaging/build_distributions.py dist

constraints-hashed: ## write constraints-hashed.txt: the packages of the extras for devices, with hashes, for all systems; in .venv-supply
	@bash tests/packaging/supply_chain.sh $(PYTHON) .venv-supply constraints-hashed

licences: ## write LICENSES.md: the licences of those packages; installs them into .venv-supply, 1 GB
	@bash tests/packaging/supply_chain.sh $(PYTHON) .venv-supply licences

sbom: ## those packages as a bill of materials for programs (CycloneDX), into dist/; in .venv-supply, 1 GB
	@bash tests/packaging/supply_chain.sh $(PYTHON) .venv-supply sbom

clean: ## remove what the other targets created, including .venv
	rm -rf $(VENV) .venv-anomalib .venv-archive .venv-arm .venv-runtime .venv-serve .venv-supply build dist demo bench gpu-check *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
