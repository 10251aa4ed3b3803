"""How often the instructions of a schedule of the TPU compiler run, by `benchmarks.tpu_step`."""

from benchmarks.tpu_step import issued

STRAIGHT = """
     0   :  { %s1 = sand.u32 1, 2 }
   0x1   :  { %s2 = sadd.s32 1, 2 }
   0x2   :  { %3 = vst [vmem:[#x] sm:$0xff] %v1 }
"""


def exit_after(rounds):
    return f"%p9 = scmp.ge.s32.totalorder %s8, {rounds} /* loop exit test */"


def test_a_straight_schedule_runs_once():
    assert issued(STRAIGHT) == 3


def test_a_loop_runs_its_rounds():
    text = f"""
   0x1   :  {{ %s1 = smov 0 }}
   0x2 LB: > {{ %s8 = sadd.s32 1, %s7 }}
   0x3   : > {{ {exit_after(10)} }}
   0x4   : > {{ %5 = sbr.rel (!%p9) target bundleno = 2 (0x2), region = 3 }}
   0x5   :  {{ %6 = vnop }}
"""
    assert issued(text) == 1 + 3 * 10 + 1


def test_a_loop_within_a_loop():
    text = f"""
   0x1 LB: > {{ %s8 = sadd.s32 1, %s7 }}
   0x2 LB: >> {{ {exit_after(5)} }}
   0x3   : >> {{ %4 = sbr.rel (!%p3) target bundleno = 2 (0x2), region = 3 }}
   0x4   : > {{ {exit_after(4)} }}
"""
    assert issued(text) == 4 * (2 + 2 * 5)


def test_the_last_lines_of_a_loop_may_lack_its_mark():
    text = f"""
   0x1 LB: > {{ {exit_after(7)} }}
   0x2   :  {{ %s1 = smov 0 }}
   0x3   : > {{ %s2 = smov 0 }}
"""
    assert issued(text) == 3 * 7


def test_the_rounds_that_fill_a_pipeline_are_not_whole_ones():
    text = f"""
   0x1 LB: > {{ %1 = dma /* iteration index, stage = 2 */ }}
   0x2   : > {{ {exit_after(12)} }}
"""
    assert issued(text) == 2 * (12 - 2)
