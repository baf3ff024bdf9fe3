# make walkthrough   run the lessons on the teaching model; pictures and executed notebooks go to outputs/
# make test          run every test, in two processes (WORKERS=4: in four)
# make test-fast     run the tests that take a moment, without the notebooks: about two minutes;
#                    one file: .venv/bin/python -m pytest tests/test_formats.py -m "not slow"
# make lint          check layout, common mistakes and types (ruff, mypy)
# make site          build the course as a book, outputs/site/index.html, from the stored outputs of the notebooks
# make lab           open JupyterLab on the notebooks
# make app           open the page for people who never open a notebook
# make test-colab    run the notebooks and panels with the versions that Colab ships, in an environment of their own
# make test-old-diffusers   have diffusers 0.25, which the original was made with, read what is written here; in an environment of its own
# make notebooks     execute the notebooks again and store their outputs
# make bench         measure the teaching model, the separation, the recipes and what training costs (hours on two cores);
#                    other people's scripts too where they are named: make bench PEERS="--original PATH --original_python ENV/bin/python --advanced …"
# make gpu           measure on an NVIDIA GPU what was only computed without one; goes on where it was stopped (benchmarks/gpu.md);
#                    other scripts, less time: make gpu PEERS="--original PATH …" GPU="--minutes 30"; a dry run without one: make gpu GPU=--simulate
# make teaching-model   train the teaching model and the judge again (hours on two cores, resumable)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
export OMP_WAIT_POLICY := passive
# one thread is faster for a model as small as the teaching model, and adds up in the same order everywhere
export OMP_NUM_THREADS := 1

# The tests of a file share what they have trained, and a notebook's cells their kernel, so a file stays in one process.
# Files are taken in the order of their names, the notebooks last: no long one is left over at the end.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: walkthrough test test-fast lint test-colab test-old-diffusers lab site app notebooks bench gpu teaching-model

walkthrough: $(READY)
	$(BIN)/python notebooks/execute.py --to outputs

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow and not browser" tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-colab: .venv-colab/ready
	.venv-colab/bin/python -m pytest tests/test_panels.py tests/test_picker.py notebooks

test-old-diffusers: $(READY) .venv-old-diffusers/ready
	OLD_DIFFUSERS_PYTHON=$(CURDIR)/.venv-old-diffusers/bin/python $(BIN)/python -m pytest tests/test_old_diffusers.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks --ServerApp.tornado_settings="{'websocket_max_message_size': 104857600}"  # uploads of more than 10 MB

site: .venv/site-ready
	$(BIN)/python site/build.py --to outputs/site

app: $(READY)
	cd app && ../$(BIN)/voila blora.ipynb

notebooks: $(READY)
	$(BIN)/python notebooks/prepare.py
	$(BIN)/python notebooks/execute.py --in-place

bench: $(READY)
	$(BIN)/python benchmarks/teaching_model.py
	$(BIN)/python benchmarks/tuning.py
	$(BIN)/python benchmarks/separation.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/structure.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/training_speed.py $(PEERS)
	$(BIN)/python benchmarks/arithmetic.py
	$(BIN)/python benchmarks/followed.py $(PEERS)
	$(BIN)/python benchmarks/growth.py

gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(PEERS) $(GPU)

teaching-model: $(READY)
	$(BIN)/python data/make_teaching_model.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing (a few minutes the first time) ..."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab,lint,test]"
	@touch $(READY)

# the book needs neither JupyterLab nor what the tests use
.venv/site-ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[site]"
	@touch .venv/site-ready

.venv-colab/ready: pyproject.toml constraints-colab.txt
	$(PYTHON) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --disable-pip-version-check -c constraints-colab.txt "torch==$(shell sed -n 's/^torch==//p' constraints.txt)" -e ".[lab,test]"
	@touch .venv-colab/ready

.venv-old-diffusers/ready: tests/old_diffusers.txt
	$(PYTHON) -m venv .venv-old-diffusers
	.venv-old-diffusers/bin/python -m pip install --disable-pip-version-check "torch==$(shell sed -n 's/^torch==//p' constraints.txt)" -r tests/old_diffusers.txt
	@touch .venv-old-diffusers/ready
