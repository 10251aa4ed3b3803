"""Freed memory stays with the process."""

import subprocess
import sys
import textwrap

import pytest

# Page faults of filling 64 MB again that another thread has filled and freed before.
FILL_TWICE = textwrap.dedent("""
    import ctypes, resource, sys, threading
    from bert_jax import memory

    def fill():
        ctypes.memset(block := libc.malloc(64 << 20), 1, 64 << 20)
        libc.free(ctypes.c_void_p(block))

    def faults(run):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    if sys.argv[1] == "keep":
        memory.keep_freed_memory()
    faults(fill)
    print(faults(fill))
""")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_not_faulted_in_again():
    def faults(argument):
        run = [sys.executable, "-c", FILL_TWICE, argument]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    pages = (64 << 20) // 4096
    if faults("default") < pages / 10:
        pytest.skip("this kernel gives huge pages unasked")
    assert faults("keep") < pages / 10
