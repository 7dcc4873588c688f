"""Memory of deleted tensors is reused, and returned at the end."""

import ctypes
import subprocess
import sys

import pytest

from empirical.runs._allocation import reuse_freed_memory

# pages that the operating system provides for a large tensor and its copy, and bytes that stay in the process
_PAGES = """
import resource

import psutil
import torch

from empirical.runs._allocation import reuse_freed_memory


def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8_000_000) + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return psutil.Process().memory_info().rss


before = resident()
with reuse_freed_memory():
    first, *later = [new_pages() for _ in range(5)]
    inside = resident()
print(first, min(later), inside - before, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than that of GNU")
def test_memory_is_reused_inside_the_context_and_returned_at_its_end():
    # in a process of its own, because the memory of other tests decides where the next tensor fits
    output = subprocess.run([sys.executable, "-c", _PAGES], check=True, capture_output=True, text=True).stdout
    first, later, inside, after = map(int, output.split())
    assert later < first / 10
    assert inside > 28e6
    assert after < 16e6


def test_other_c_libraries_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with reuse_freed_memory():
        pass
