"""Memory that is given back and taken again."""

import resource

import torch
from common import in_child

from system.memory import keep_freed_memory


def faults_of_taking_memory_again():
    """Pages that the system clears for the second of two tensors of 80 MB."""
    torch.ones(20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_that_was_freed_is_used_again():
    def child():
        assert faults_of_taking_memory_again() > 1000
        keep_freed_memory()
        assert faults_of_taking_memory_again() < 1000

    assert in_child(child) == 0
