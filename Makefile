# make help, or read tools/project.py, which does the work on every system.

ifeq ($(OS),Windows_NT)
PYTHON ?= python
else
PYTHON ?= python3
endif
PROJECT = $(PYTHON) tools/project.py
ARGS ?=

.PHONY: help setup run test lab measurements test-platforms offline-kit links lint clean
.DEFAULT_GOAL := help

help:
	@echo "make run    execute the four notebooks; results go to results/"
	@echo "make test   run every test, the notebooks among them"
	@echo "make lab    open JupyterLab"
	@echo "make lint   check code and notebooks with ruff"
	@echo "make measurements  record the long runs in data/measurements"
	@echo "make test-platforms  run the notebooks on Colab's and Kaggle's versions, and on the newest"
	@echo "make offline-kit     write a folder that installs and runs without a network"
	@echo "make links  write the repository's address (pyproject.toml) into notebooks and README"
	@echo "make setup  only make .venv (the others do it themselves, once)"
	@echo "make clean  remove .venv and results"
	@echo "PYTHON=python3.12 chooses a Python, ARGS=... is passed on: make test ARGS=tests/test_setup.py"

setup run test lab measurements test-platforms offline-kit links lint clean:
	@$(PROJECT) $@ $(ARGS)
