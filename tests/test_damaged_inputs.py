"""Whatever is damaged in a file that an entry reads: one line, or no difference; never a traceback.

DAMAGE_COUNT: how many draws, over all entries; by default some, over those that compile little.
DAMAGE_SEED: others than those of every day.
"""

import os

from damage_bench import make_bench
from damage_draws import draws, is_fault, table_of

QUICK = "score,corpus,to run,prepar,finetune"


def test_damaged_inputs(tmp_path):
    make_bench(tmp_path / "bench")
    given, seed = os.environ.get("DAMAGE_COUNT"), int(os.environ.get("DAMAGE_SEED", "0"))
    count = int(given or 100)
    found = list(draws(tmp_path / "bench", count, seed, "" if given else QUICK))
    assert len(found) == count
    faults = [" | ".join(map(str, outcome)) for outcome in found if is_fault(outcome)]
    assert not faults, "\n".join([table_of(found), *faults])
