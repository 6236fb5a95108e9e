# `make demo` and `make test` each make .venv if needed, with the packages of requirements.txt and constraints.txt.
PYTHON ?= python3
PY = .venv/bin/python

# The demo: a narrow network and few epochs, so that it ends within minutes on two cores.
DEMO_PATHS = path_raw_data=demo/raw "path_extracted_data=['demo/windows_ae', 'demo/windows_clf']" path_writing_data=demo/results
DEMO_TRAINING = "filters=[8, 8, 8]" batch_size=16 learning_rate=2e-3 num_epochs=5

.PHONY: demo test test-pages test-slurm lint clean
demo: .venv/installed
	rm -rf demo
	$(PY) simulate_data_raw.py $(DEMO_PATHS)
	$(PY) create_windows_ae.py $(DEMO_PATHS)
	$(PY) create_windows_clf.py $(DEMO_PATHS)
	$(PY) main_train.py auto wavelets $(DEMO_PATHS) $(DEMO_TRAINING)

# Two files of tests at a time, with one thread each.
test: .venv/installed lint
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile

# The commands of README and docs/, in order, on tiny patients.
test-pages: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -m pages tests/test_docs.py

# The job scripts on a real Slurm of one node, which must be installed: tests/slurm/cluster.sh install (as root).
test-slurm: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest --capture=no tests/slurm/check_slurm.py

lint: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m ty check --quiet

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis
