"""Freed memory stays with the process; what cannot fit is told before it is tried."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpus

from bert_jax import main
from bert_jax.common.errors import UserError
from bert_jax.training import memory

# Page faults of filling so much memory again that another thread has filled and freed before.
FILL_TWICE = textwrap.dedent("""
    import ctypes, resource, sys, threading
    from bert_jax.training import memory

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


@pytest.mark.parametrize(
    ("changes", "host", "message"),
    [
        ({"model.feed_forward": 2**30}, None, r"training this model .* at least [\d,.]+ TB of mem"),
        ({}, 100_000, r"training this model .* smaller model, or more devices"),
        ({}, 2_000_000, r"a step needs at least .* MB of memory, .* has 2.0 MB: lower"),
    ],
)  # fmt: skip
def test_a_training_too_large_for_the_memory_is_refused(
    corpus_path, tmp_path, monkeypatch, changes, host, message
):
    """A model before anything is made, a batch when the step is compiled."""
    if host:
        monkeypatch.setattr(memory, "host_bytes", lambda: host)
    config = tiny_corpus.small_config(corpus=str(corpus_path))
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        main.pretrain(config, tmp_path / "run")
    assert (tmp_path / "run").exists() == (host == 2_000_000)


def test_a_call_that_does_not_fit_is_refused_and_one_that_does_is_compiled_once(monkeypatch):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    call = memory.Checked(jax.jit(lambda params, batch: params + batch @ batch.T), "a batch")
    params = jnp.zeros((4, 4))
    jax.block_until_ready(params)
    compiled.clear()
    for _ in range(3):
        call(params, np.ones((4, 8), np.float32))
    assert len(compiled) == 1
    monkeypatch.setattr(memory, "host_bytes", lambda: 1000)
    call(params, np.ones((4, 8), np.float32))  # known
    with pytest.raises(UserError, match=r"a batch needs at least .* lower batch_size"):
        call(params, np.ones((4, 800), np.float32))


def test_the_memory_of_a_control_group_counts():
    assert 2**28 < memory.host_bytes() < 2**50
