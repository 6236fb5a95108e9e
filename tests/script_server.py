"""Run scripts one after the other, as `python script.py words` does, each in a process of its own.

The processes are forked from this one, which has imported what scripts import: that takes longer than tiny runs.

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
import traceback

# The scripts that import the most, and what libraries import late.
MODULES = ('main_train', 'detect', 'simulate_data_raw', 'torch._dynamo', 'torch._inductor', 'mne.forward', 'mne.dipole')


def run(words: list[str]) -> tuple[int, str]:
    """Run a script in a process of its own; return its exit status and what it printed."""
    with tempfile.TemporaryFile('w+') as printed:
        child = os.fork()
        if not child:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.argv = words
            status = 1  # after a traceback
            try:
                runpy.run_path(words[0], run_name='__main__')
            except SystemExit as end:  # as every script ends
                status = end.code
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)  # at once: to clear away all modules takes a second
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        return status, printed.read()


if __name__ == '__main__':
    [folder] = sys.argv[1:]
    os.chdir(folder)
    sys.path[0] = folder
    for module in MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
