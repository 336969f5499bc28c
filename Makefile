# The only entry points that people and CI need. Each does all of its own set-up, in .venv.

PYTHON ?= python3
# The PyTorch that tvmflow is tested with; pyproject.toml has the whole range.
TORCH ?= torch==2.13.0
DEMO := dist/demo
# Beside this computer, in float32 and in int8.
DEMO_BOARDS := raspberry-pi-3b raspberry-pi-4b raspberry-pi-5 jetson-orin-nano gtx-1080ti pynq-z1 mps3-an547
BIN := .venv/bin
# The package as it is installed, of links.
TREE := dist/tree

.PHONY: help demo demo-report test quick lint types docs bench table1 tuned weights clean

help:
	@echo "make demo   compile the paper's network for a board of each kind, verify, time here, report"
	@echo "make demo-report  the same report again, of what make demo has built"
	@echo "make test   run the tests"
	@echo "make quick  run those alone that touch emulators or other system packages, and a network through every kind of board"
	@echo "make lint   check style, types, and which way imports go; make types the latter two"
	@echo "make docs   make the documentation's pages in dist/site"
	@echo "make bench  compare with other libraries on this computer"
	@echo "make table1 the paper's Table 1 with what each network costs on several boards (fifteen minutes)"
	@echo "make tuned  search schedules for this computer's CPU and put the best into schedules/tuned (ten minutes)"
	@echo "make weights DATA=cifar10.tar.xz  make anew what depends on the default weights, after tvmflow train"
	@echo "make clean  remove what the others made, .venv included"

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) isn't Python 3.10 or newer: name one, as in make PYTHON=python3.12." >&2; exit 5; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) makes no virtual environments: apt-get install python3-venv brings what it lacks." >&2; exit 5; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) --editable '.[bench,dev,docs]'
	touch $@

demo: .venv/installed
	mkdir -p $(DEMO)
	printf '%s\n' $(DEMO_BOARDS) host | xargs -P 2 -I BOARD $(BIN)/tvmflow build --board BOARD -o $(DEMO)/BOARD
	$(BIN)/tvmflow build --dtype int8 -o $(DEMO)/host-int8
	$(MAKE) --no-print-directory demo-report

# Verifies, times and counts anew what was built: after more was installed, that shows the rest.
demo-report: .venv/installed
	$(BIN)/tvmflow report $(DEMO)/host $(DEMO)/host-int8 $(DEMO_BOARDS:%=$(DEMO)/%) --cycles -o $(DEMO)

# Files in parallel, each file's tests in one process, which share what they build.
test: .venv/installed
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

quick: .venv/installed
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m "emulated or packages"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

# Names are looked up in the package as it is installed, whose parts lie in four folders here.
types: .venv/installed
	rm -rf $(TREE) && mkdir -p $(TREE)/tvmflow
	ln -s $(CURDIR)/tvmflow/* $(CURDIR)/targets $(CURDIR)/schedules $(CURDIR)/models $(TREE)/tvmflow/
	MYPYPATH=$(TREE) $(BIN)/mypy -p tvmflow
	cd $(TREE) && PYTHONPATH=. $(CURDIR)/$(BIN)/lint-imports $(CURDIR)/pyproject.toml --no-cache

# Nothing of it comes from the network, nor asks for it in a browser.
docs: .venv/installed
	$(BIN)/sphinx-build --quiet --fresh-env --nitpicky --fail-on-warning --keep-going --conf-dir docs . dist/site
	@echo "dist/site/index.html"

bench: .venv/installed
	$(BIN)/python -m benchmarks.peers --models dilated-net mobilenet-v1 googlenet squeezenet vgg16 small-vgg
	$(BIN)/python -m benchmarks.depthwise

table1: .venv/installed
	$(BIN)/python -m benchmarks.table1

# One folder for each CPU; name it by TUNED if this board is no longer called host.
TUNED ?= host-$(shell $(BIN)/python -c "from tvm.target import codegen; print(codegen.llvm_get_system_cpu())" 2>/dev/null)

tuned: .venv/installed
	rm -rf runs/tuned schedules/tuned/$(TUNED)
	for model in dilated-net mobilenet-v1 squeezenet small-vgg; do \
		$(BIN)/tvmflow tune --model $$model --work-dir runs/tuned || exit 1; \
	done
	$(BIN)/tvmflow db export runs/tuned --better -o schedules/tuned/$(TUNED)

# What depends on models/weights/dilated-net.safetensors: its int8 forms, their accuracies and the page of experiments.
# Tuned schedules don't; `make demo` reports with the new weights.
weights: .venv/installed
	@test -n "$(DATA)" || { echo "Say where CIFAR-10 is: make weights DATA=cifar10.tar.xz"; exit 2; }
	rm -rf runs/qat
	$(BIN)/tvmflow evaluate --data $(DATA)
	$(BIN)/tvmflow quantize --data $(DATA) -o models/weights
	$(BIN)/tvmflow quantize --data $(DATA) --scheme power-of-two --qat --work-dir runs/qat -o models/weights
	$(BIN)/python -m benchmarks.experiments page

clean:
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
