"""Whatever is damaged in a file that an entry reads: one line, or no difference; never a traceback.

DAMAGE_COUNT: how many draws; DAMAGE_SEED: others than those of every day.
"""

import os

from damage_bench import make_bench
from damage_draws import draws, is_fault, table_of


def test_damaged_inputs(tmp_path):
    make_bench(tmp_path / "bench")
    count, seed = (int(os.environ.get(f"DAMAGE_{n}", d)) for n, d in (("COUNT", 60), ("SEED", 0)))
    found = list(draws(tmp_path / "bench", count, seed))
    assert len(found) == count
    faults = [" | ".join(map(str, outcome)) for outcome in found if is_fault(outcome)]
    assert not faults, "\n".join([table_of(found), *faults])
