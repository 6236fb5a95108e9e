"""Run scripts one after the other, as `python script.py words` does, each in a process of its own.

The processes are forked from this one, which has the libraries in memory: importing them anew takes longer than the tiny
runs of a test.

    python tests/script_server.py FOLDER

Reads   lines of standard input, each a JSON list: a script in FOLDER, and its words
Writes  to standard output, a line for each: a JSON list of its exit status and what it printed
"""

import importlib
import json
import os
import runpy
import sys
import tempfile

LIBRARIES = ('matplotlib.pyplot', 'mne', 'pandas', 'scipy.signal', 'sklearn.ensemble', 'sklearn.svm', 'torch')


def run(words: list[str]) -> tuple[int, str]:
    """Run a script in a process of its own; return its exit status and what it printed."""
    with tempfile.TemporaryFile('w+') as printed:
        child = os.fork()
        if not child:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.argv = words
            runpy.run_path(words[0], run_name='__main__')  # ends by SystemExit, as every script does
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        return status, printed.read()


if __name__ == '__main__':
    [folder] = sys.argv[1:]
    os.chdir(folder)
    sys.path[0] = folder
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
