#!/usr/bin/env bash
# The table of results/plan: BERT-Base and -Large, the paper's two phases, on 4 to 1024 chips of v5e
# (1024: four slices of 256). 64 sequences a chip and step, so 4 chips have the paper's batch of 256
# and 1024 chips the 64k of LAMB's; 256 M sequences in all, as in the paper. Flags are passed on.
# Large does not fit at once: it takes four micro-batches, which is faster than to compute activations
# twice. Plans that are there are kept. Needs no TPU: pip install 'jax[tpu]'; 75 minutes of two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements.txt
python -m pip install --quiet "jax[tpu]"

out=results/plan
for size in base large; do
  accumulation=$([ "$size" = base ] && echo 1 || echo 4) # micro-batches that fit in 16 GB
  for slice in 2x2 4x4 8x8 16x16 16x16*4; do
    topology=${slice%\**} slices=1
    [ "$topology" = "$slice" ] || slices=${slice#*\*}
    batch=$((64 * ${topology%x*} * ${topology#*x} * slices))
    plan=$out/$size-v5e-$topology-x$slices.json
    [ -e "$plan" ] || python -m bert_jax.plan \
      --config=configs/pretrain.py:size=$size,seq=512,phases=true \
      --config.batch_size=$batch --config.steps=$((256000000 / batch)) \
      --config.accumulation="$accumulation" \
      --topology="v5e:$topology" --slices="$slices" --output="$plan" "$@"
  done
done

python - "$out" <<'END'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
plans = [(path.name.partition("-")[0], json.loads(path.read_text())) for path in folder.glob("*.json")]
lines = [
    "Compiled for v5e, not run: `bash launch/plan_table.sh`. HBM and collectives are those of the",
    "compiled program, of one chip and the phase of 512 tokens; `~` are estimates (see",
    "`bert_jax/plan.py`). 256 M sequences, 90% of them of 128 tokens; Large in 4 micro-batches.",
    "",
    "| model | chips | batch | HBM needed | sent a step | ~step, 128 | ~step, 512 | ~MFU, 512 | ~hours | ~chip-hours |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
]
for size, plan in sorted(plans, key=lambda item: (item[0], item[1]["chips"])):
    short, long = plan["phases"]
    cells = [size, f"{plan['chips']:,}", f"{plan['batch_size']:,}"]
    cells.append(f"{long['memory']['needed'] / 2**30:.1f} of {long['memory']['available'] / 2**30:.2f} GiB")
    if plan["fits"]:
        sent = sum(kind["sent"] for kind in long["collectives"].values())
        steps = [f"{phase['estimate']['step_seconds'] * 1e3:,.0f} ms" for phase in (short, long)]
        cells += [f"{sent / 1e6:,.0f} MB", *steps, f"{long['estimate']['mfu']:.0%}"]
        cells += [f"{plan['hours']:,.1f}", f"{plan['chip_hours']:,.0f}"]
    else:
        cells += ["does not fit"] + ["-"] * 5
    lines.append(f"| {' | '.join(cells)} |")
(folder / "README.md").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
END
