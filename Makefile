# Every target starts from nothing: it makes .venv and installs the exact versions of constraints.txt if that has not been done.
# Settings, given as NAME=value:  SIZE (of the demo), ARGS (passed on), PYTHON (which interpreter), PIP_ARGS (for pip), RUN (for pack),
#   WORKERS (of the tests: 2, or 0 where ARGS is given, which may name a few of them)
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test test-full notebooks book readme pack export lint clean minerl-env lock

# the first interpreter of a version that the lock is made for
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
SIZE ?= laptop
RUN ?= runs/collect_wood_laptop_seed0
ARGS ?=
PIP_ARGS ?=
WORKERS ?= $(if $(ARGS),0,2)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
STAMP := .venv/.installed
# waiting threads sleep, so that two programs at once do not slow each other down
export OMP_WAIT_POLICY ?= PASSIVE

help: ## show this list
	@echo 'make TARGET, where TARGET is one of'
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  %-11s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv with everything but minerl, in the locked versions

$(STAMP): constraints.txt settings.ini setup.py pyproject.toml
	@test -n '$(PYTHON)' || { echo 'No Python from 3.11 to 3.13 found; install one, or name it: make PYTHON=/path/to/python3'; exit 1; }
	@echo "== .venv: made with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo '== .venv: installing torch in the locked version (the large part, once)'
	@$(PIP) torch
	@echo '== .venv: installing dreamer4_nb with its extras demo, notebooks and dev'
	@$(PIP) -e '.[demo,notebooks,dev]'
	@touch $@

demo: $(STAMP) ## record, train, imagine and evaluate; ends with a report (SIZE=laptop)
	@echo '== demo: dreamer4 demo --size $(SIZE) $(ARGS)'
	@$(BIN)/dreamer4 demo --size $(SIZE) $(ARGS)

test: $(STAMP) ## all notebooks at size smoke and the tests beside them, two at a time
	@echo '== test: notebooks and tests/; the last line is the sum'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-full: $(STAMP) ## the same with what takes longer: slow cells, more examples per property, coverage
	@echo '== test-full: with slow cells and slow tests; the last line is the sum'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --full --cov=dreamer4_nb --cov-report=term:skip-covered $(ARGS)

notebooks: $(STAMP) ## open the book in JupyterLab
	@$(BIN)/jupyter lab index.ipynb

book: .venv/.book ## the book as a web site in _book/, to be read without a network
	@echo '== book: notebooks as they were saved; none is run'
	@$(BIN)/python nbs/book/build.py $(ARGS)

.venv/.book: $(STAMP)
	@echo '== .venv: installing what builds the book (once)'
	@$(PIP) -e '.[book]'
	@touch $@

readme: $(STAMP) ## write README.md from index.ipynb
	@$(BIN)/python tests/readme.py

pack: $(STAMP) ## put a finished run, trained by this commit, into the package as `pretrained` (RUN=folder)
	@rm -rf dreamer4_nb/pretrained
	@$(BIN)/python -c "from dreamer4_nb.run.pack import pack_run; \
	  print(pack_run('$(RUN)', commit='$$(git rev-parse HEAD)'))"

export: $(STAMP) ## write the package from the notebooks, formatted and clean, and redraw the rooms
	@$(BIN)/ruff format -q index.ipynb nbs tests setup.py
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean
	@$(BIN)/python nbs/book/rooms.py

lint: $(STAMP) ## style of notebooks and tests, types of the package
	@$(BIN)/ruff format --check index.ipynb nbs tests setup.py
	@$(BIN)/ruff check index.ipynb nbs tests setup.py
	@$(BIN)/mypy

clean: ## remove what building and testing leave behind; .venv and runs stay
	@rm -rf build dist _book _docs *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	@find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | xargs rm -rf
	@echo '== clean: done; .venv and runs/ are kept'

# MineRL 0.4.4 does not install the usual way on today's Pythons. This recipe leaves its Minecraft out (READTHEDOCS), so that it reads
# MineRL's data sets but cannot open a world. Our own reader of that data needs none of it.
minerl-env: .venv-minerl/.installed ## a separate .venv-minerl in which `import minerl` works (data only)

.venv-minerl/.installed:
	@test -n '$(PYTHON)' || { echo 'No Python from 3.11 to 3.13 found; name one: make minerl-env PYTHON=/path/to/python3'; exit 1; }
	@echo '== .venv-minerl: minerl 0.4.4 with gym 0.19.0, without its Minecraft (pip will note that gym asks for an older cloudpickle)'
	@$(PYTHON) -m venv .venv-minerl
	@.venv-minerl/bin/python -m pip install -q $(PIP_ARGS) setuptools==65.5.0 wheel==0.38.4
	@.venv-minerl/bin/python -m pip install -q $(PIP_ARGS) --no-build-isolation --no-deps gym==0.19.0
	@.venv-minerl/bin/python -m pip install -q $(PIP_ARGS) opencv-python-headless tqdm numpy requests ipython lxml psutil Pyro4 \
	  coloredlogs pillow matplotlib dill daemoniker xmltodict==0.12.0 inflection jinja2 simple-term-menu bullet filelock getch cloudpickle
	@READTHEDOCS=1 .venv-minerl/bin/python -m pip install -q $(PIP_ARGS) --no-build-isolation --no-deps minerl==0.4.4
	@.venv-minerl/bin/python -W ignore -c 'import minerl.data'
	@touch $@
	@echo '== .venv-minerl: `import minerl` works there'

lock: .venv/.book ## write the versions that .venv holds now to constraints.txt
	@{ echo '# exact versions of all that `make install` installs; written by `make lock`'; \
	  $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude wheel | sed -E 's/\+[a-z0-9.]+$$//' \
	  | grep -v -E '^(nvidia-|triton)|@ ' | sort -f; } > .constraints.tmp && mv .constraints.tmp constraints.txt && touch $(STAMP)
	@echo "== lock: $$(grep -c == constraints.txt) packages in constraints.txt"
