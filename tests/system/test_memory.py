"""Memory that is given back and taken again."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


# Pages that the system clears for the second of two tensors of 80 MB, before and after. In a process of its own: what
# others have left in the memory decides where a tensor lies.
COUNT = """
import resource
import torch
from system.memory import keep_freed_memory

def cleared():
    torch.ones(20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(cleared())
keep_freed_memory()
print(cleared())
"""


def test_memory_that_was_freed_is_used_again():
    ended = subprocess.run([sys.executable, '-c', COUNT], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, ended.stdout.split())
    assert after < before / 10  # pages of 4 KB or 2 MB, as the system likes
