# pvc: what there is to build, to check and to try. `make` alone lists it.

VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/pytest
# Testbeds of several checkouts (and of the demo and the tests) can run side by side.
BENCH  ?=
FUZZ   ?=
FUZZ_SECONDS ?=
# Debian releases whose Slurm differs from the one that is installed: 24.11 and 26.05.
SUITES := trixie sid
# Where an environment forbids it, each of hundreds of interpreters would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix check deps venv spank agent bpf headers bench fuzz fmt man docs golden clean need-venv

help:  ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: deps venv spank agent bpf  ## Install what is missing, boot 4 VMs on a 3-node Slurm testbed, show them talk, clean up.
	tools/demo

test: deps venv spank agent bpf headers  ## Everything: check, then the suites with root, VMs and Slurm. CI runs this.
	tools/test

test-matrix: deps venv spank agent bpf  ## The core of the slurm suite on testbeds of other Debian releases, SUITES="trixie sid".
	@tools/test-matrix $(SUITES)

check: need-venv  ## The fast part: no root, no network, about a minute. (C tests included.)
	$(PYTEST) -q -n 2 --dist worksteal tests/unit

deps:  ## Install the Debian packages of conf/debian-packages.txt that are missing (as root).
	@tools/deps

venv:  ## Make .venv with pvc (editable) and the development tools.
	@tools/venv

spank:  ## Build the SPANK plug-in.
	@$(MAKE) --no-print-directory -C spank

agent:  ## Build the agent that runs in guests.
	@$(MAKE) --no-print-directory -C agent

bpf:  ## Build the programs for the ports of networks.
	@$(MAKE) --no-print-directory -C bpf

fuzz: need-venv  ## Fuzz what takes bytes of strangers, and draw many examples for the unit tests; FUZZ=NAME is one target, FUZZ_SECONDS=N the time of each (60).
	@$(BIN)/python -m tests.fuzz "$(FUZZ)" "$(FUZZ_SECONDS)"
	@[ -n "$(FUZZ)" ] || $(PYTEST) -q -n 2 -m hypothesis --hypothesis-profile=deep tests/unit

headers: deps  ## Fetch the headers of other Slurms that the plug-in is compiled against in the tests.
	@tools/slurm-headers --fetch $(SUITES)

bench: need-venv  ## Print measurements, one JSON object a line; BENCH=NAME runs one (setup, throughput, plan …).
	@$(BIN)/python -m tests.bench $(BENCH)

fmt: need-venv  ## Format the code and mend what ruff can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: need-venv  ## Write the generated parts of the manual, and the pages as man/build/*.
	$(BIN)/pvc mandoc man/gen
	mkdir -p man/build
	for page in man/*.rst; do $(BIN)/rst2man "$$page" "man/build/$$(basename "$$page" .rst)"; done

docs:  ## Build the documentation as HTML: build/docs/index.html. A dead link or any other warning fails.
	@tools/venv docs
	@rm -rf build/docs
	.venv-docs/bin/sphinx-build -q -E -W --keep-going -c docs -d build/doctrees -b html . build/docs

golden: need-venv  ## Write the expected plans and command lines of the tests again; the diff is for review.
	PVC_GOLDEN=write $(PYTEST) -q tests/unit/plan

clean:  ## Remove what was built, the venv included.
	$(MAKE) --no-print-directory -C spank clean
	$(MAKE) --no-print-directory -C agent clean
	$(MAKE) --no-print-directory -C bpf clean
	$(MAKE) --no-print-directory -C tests/fuzz clean
	rm -rf $(VENV) .venv-docs .venv.lock build dist *.egg-info man/build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-venv:
	@test -x $(PYTEST) || { echo "there is no .venv here: make venv" >&2; exit 1; }
