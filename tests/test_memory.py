"""Freed memory stays with the process."""

import subprocess
import sys
import textwrap

import pytest

# Page faults of filling so much memory again that another thread has filled and freed before.
FILL_TWICE = textwrap.dedent("""
    import ctypes, resource, sys, threading
    from bert_jax import memory

    def fill():
        blocks = [libc.malloc(size) for size in sizes]
        for block, size in zip(blocks, sizes):
            ctypes.memset(block, 1, size)
        for block in blocks:
            libc.free(ctypes.c_void_p(block))

    def faults(run):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    ctypes.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    sizes = [int(size) for size in sys.argv[2:]]
    if sys.argv[1] == "keep":
        memory.keep_freed_memory()
    faults(fill)
    print(faults(fill))
""")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize("sizes", [[64 << 20], [800 << 20] * 3], ids=["64 MB", "2.4 GB in three"])
def test_memory_that_was_freed_is_not_faulted_in_again(sizes):
    def faults(argument):
        run = [sys.executable, "-c", FILL_TWICE, argument, *map(str, sizes)]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    pages = sum(sizes) // 4096
    if faults("default") < pages / 10:
        pytest.skip("this kernel gives huge pages unasked")
    assert faults("keep") < pages / 10
