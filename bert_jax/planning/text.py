"""What `bert_jax.plan` found, as Markdown tables for people; `~` marks estimates."""

from collections.abc import Mapping, Sequence
from typing import Any

Plan = Mapping[str, Any]


def plan_text(result: Plan) -> str:
    """A plan, with a column for each phase."""
    phases = result["phases"]
    cells = [_cells(phase) for phase in phases]
    names = dict.fromkeys(name for one in cells for name in one)
    header = ["", *(f"{p['stop'] - p['start']:,} steps, S={p['seq_length']}" for p in phases)]
    rows = [[name, *(one.get(name, "-") for one in cells)] for name in names]
    lines = [_title(result), "", *_table(header, rows), ""]
    if not result["fits"]:
        lines.append("Does not fit. Try --search, --config.accumulation, --config.model.remat.")
        return "\n".join(lines)
    kernels = sorted({kernel["kind"] for p in phases for kernel in p["unestimated"]})
    loops = sorted({loop for p in phases for loop in p["unknown_loops"]})
    lines += [
        f"All steps: ~{result['hours']:,.1f} hours, ~{result['chip_hours']:,.0f} chip-hours.",
        "~ marks estimates, never compared with a TPU; bert_jax/plan.py says how they are made.",
        f"Without an estimate of the compiler: {', '.join(kernels) or 'none'}.",
    ]
    if loops:
        lines.append(f"Loops of unknown length, counted once: {', '.join(loops)}.")
    return "\n".join(lines)


def search_text(result: Plan) -> str:
    """What a search tried and found."""
    header = ["remat", "rows a device", "fits", "~step", "~MFU"]
    rows = []
    for one in result["tries"]:
        cells = ["layers" if one["remat"] else "none", f"{one['rows']:,}", _fit(one["memory"])]
        if "estimate" in one:
            cells += [_ms(one["estimate"]["step_seconds"]), f"{one['estimate']['mfu']:.1%}"]
        rows.append(cells + ["-"] * (len(header) - len(cells)))
    most, wanted = result["most_rows"], result["wanted_rows"]
    advice = {
        "none": "fit without rematerialisation",
        "layers": "fit with --config.model.remat=true",
        None: "do not fit: raise --config.accumulation",
    }[result["cheapest"]]
    lines = [
        *(_title(result), "", *_table(header, rows), ""),
        f"A device holds {most['none']:,} rows without rematerialisation and {most['layers']:,} "
        "with --config.model.remat=true (powers of two).",
        f"The config's {wanted:,} rows a device {advice}.",
    ]
    return "\n".join(lines)


def _title(result: Plan) -> str:
    slices = f"{result['slices']} x " if result["slices"] > 1 else ""
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    pieces = result["accumulation"]
    return (
        f"{slices}{result['topology']}: {result['chips']:,} chips, {result['devices']:,} devices "
        f"({mesh}); {result['batch_size']:,} rows a step"
        + (f" in {pieces} micro-batches" if pieces > 1 else "")
    )


def _cells(phase: Plan) -> dict[str, str]:
    """A phase's column; memory and times are those of one device."""
    memory = phase["memory"]
    kinds = [kind for kind in memory if kind not in ("needed", "available", "free")]
    cells = {"rows a device": f"{phase['rows']:,}", "fits": _fit(memory)}
    cells |= {f"{kind}, GiB": _gib(memory[kind]) for kind in kinds}
    cells |= {
        "model FLOPs a step": f"{phase['model_flops']:.3g}",
        "model FLOPs a token": f"{phase['model_flops_per_token']:.3g}",
        "compiling": f"{phase['compile_seconds']:.0f} s",
    }
    if "estimate" not in phase:
        return cells
    for kind, total in phase["collectives"].items():
        cells[kind] = f"{total['count']:,} of {total['bytes'] / 1e6:,.1f} MB"
    guess = phase["estimate"]
    cells["~cycles"] = f"{guess['cycles']:,}"
    for name in ("computing", "unestimated", "communicating", "step"):
        cells[f"~{name}"] = _ms(guess[f"{name}_seconds"])
    cells["~MFU"] = f"{guess['mfu']:.1%}"
    cells["~tokens/s"] = f"{guess['tokens_per_second']:,.0f}"
    return cells


def _fit(memory: Plan) -> str:
    word = "yes, free" if memory["free"] >= 0 else "NO, missing"
    return f"{word} {_gib(abs(memory['free']))} of {_gib(memory['available'])} GiB"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines
    ]
