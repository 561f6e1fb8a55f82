# Every command makes .venv first, and again after a change of requirements.txt or pyproject.toml. Windows: see README.md.
# PYTHON=python3.12 chooses a Python, ARGS=... is passed on: make test ARGS=tests/test_setup.py
PYTHON ?= python3
ARGS ?=
IN_VENV = .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
# Threads that wait must not spin: beside one busy program they made training ten times as slow.
export OMP_WAIT_POLICY = PASSIVE
.DEFAULT_GOAL := help
.PHONY: help setup run test lab lint notebook measurements results test-platforms workshop offline-kit bench site clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

.venv/.done: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit('Stopped: Python %d.%d runs this, 3.11, 3.12 or 3.13 is needed. Name one: make setup PYTHON=python3.12' % sys.version_info[:2])"
	$(PYTHON) -m venv .venv
	$(IN_VENV) -m pip install -r requirements.txt -e .
	@touch $@

# The site's packages and the browser's driver, which only tests and `make site` need.
.venv/.done-docs: .venv/.done docs/requirements.txt
	$(IN_VENV) -m pip install -r docs/requirements.txt
	@touch $@

setup: .venv/.done  ## only make .venv, which takes 2.2 GB and some minutes

run: .venv/.done  ## execute the notebooks strictly, and print the scoreboard
	$(IN_VENV) -m tools.run $(ARGS)

test: .venv/.done-docs  ## run every test, the notebooks among them
	$(IN_VENV) -m pytest $(ARGS)

lab: .venv/.done  ## open JupyterLab
	$(IN_VENV) -m jupyterlab notebooks $(ARGS)

lint: .venv/.done  ## check code and notebooks with ruff
	$(IN_VENV) -m ruff check . && $(IN_VENV) -m ruff format --check .

notebook: .venv/.done  ## write a new notebook from the template (NAME=05_ia3 TITLE="...")
	$(IN_VENV) -m tools.new_notebook "$(NAME)" "$(TITLE)"

measurements: .venv/.done  ## record the long runs in data/measurements (ARGS=--resume goes on)
	$(IN_VENV) -m tools.measure $(ARGS)

results: .venv/.done  ## write docs/results.md from what is recorded
	$(IN_VENV) -m tools.results

test-platforms: .venv/.done  ## run the notebooks on the versions of Colab and Kaggle, and on the newest
	$(IN_VENV) -m tools.platforms $(ARGS)

workshop: .venv/.done  ## write student and instructor copies and plans, with the minutes of the last make run
	$(IN_VENV) -m tools.workshop $(ARGS)

offline-kit: .venv/.done  ## write a folder that installs and runs without a network
	$(IN_VENV) -m tools.offline_kit $(ARGS)

bench: .venv/.done  ## compare speed with what people run instead, in .venv-bench (ARGS=--quick tries it)
	$(IN_VENV) -m benchmarks.run $(ARGS)

site: .venv/.done-docs  ## build the site of the last `make run` in build/site
	$(IN_VENV) -m tools.site $(ARGS)

clean:  ## remove .venv and results
	rm -rf .venv .venv-bench results build *.egg-info
