"""What a compiled program says of itself: operations, their estimated cycles, and collectives.

Read from the text of the optimised HLO, from the entry on through everything that it calls. The
body of a loop counts as often as it runs; `Compiled.cost_analysis` counts it once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_COLLECTIVES = {
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast", "send",
}  # fmt: skip
# Instructions that take no time of their own. Besides them, copies and slices in two halves (-start
# and -done) run beside the computation.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
    "conditional", "opt-barrier", "partition-id", "replica-id", "recv",
}  # fmt: skip
_BOOKKEEPING = {"ConcatBitcast", "AllocateBuffer"}  # custom calls that compute nothing


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, as one device sees it."""

    kind: str  # HLO opcode; "send": to other slices
    times: int  # in a step
    bytes: int  # of the whole array: before it is reduced and scattered, after it is gathered
    devices: int  # that take part; 1 for a send

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time; by the ring algorithm, where there is one."""
        if self.kind in ("collective-permute", "send"):
            return self.bytes
        share = (self.devices - 1) / self.devices * self.bytes
        return 2 * share if self.kind == "all-reduce" else share


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Instructions of one kind for which the compiler gives no estimate."""

    kind: str  # opcode, name of a fusion, or target of a custom call
    times: int  # in a step
    bytes: int  # read and written in a step


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that runs by itself, with all that is fused into it."""

    name: str
    opcodes: frozenset[str]  # its own, and those fused into it
    source: str  # op_name of its matrix product, else its own: where in the model it is from
    times: int  # in a step
    cycles: int | None  # estimated, each time; None: no estimate
    bytes: int  # of HBM, read and written each time
    flops: int  # of convolutions (on TPU: all matrix products), each time
    twin: int  # a number that operations share which do the same with other data


@dataclasses.dataclass(frozen=True)
class Program:
    """One device's share of a step, by the compiler's account."""

    cycles: int  # estimated; 0 where the compiler estimates nothing (CPU)
    collectives: tuple[Collective, ...]
    unestimated: tuple[Kernel, ...]  # the largest first
    unknown_loops: tuple[str, ...]  # loops of unknown length, counted once
    activations: int = 0  # bytes that the forward pass leaves to the backward pass
    operations: tuple[Operation, ...] = ()  # that take time; no collectives


def read_program(text: str) -> Program:
    """Reads the text of a compiled program, `Compiled.as_text()`."""
    walk = _Walk(text)
    walk.follow(walk.entry, 1)
    kernels = [Kernel(kind, *counts) for kind, counts in walk.kernels.items()]
    return Program(
        walk.cycles,
        tuple(walk.collectives),
        tuple(sorted(kernels, key=lambda kernel: -kernel.bytes)),
        tuple(walk.unknown_loops),
        walk.activations,
        tuple(walk.operations),
    )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    shape: str  # of the result, with its layout
    bytes: int  # of the result
    operands: tuple[str, ...]  # names
    attributes: str  # the line from the operands on

    def calls(self, attribute: str) -> list[str]:
        """Names of the computations under an attribute (a pattern)."""
        found = re.findall(rf"\b(?:{attribute})=(?:%([\w.-]+)|\{{([^}}]*)\}})", self.attributes)
        return [name.strip(" %") for one, many in found for name in (one or many).split(",")]

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else None

    @property
    def source(self) -> str:
        """Where in the model it is from; empty where the program does not say."""
        match = re.search(r'\bop_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def takes_time(self) -> bool:
        """Whether it runs, and not beside others."""
        if self.cycles is not None:
            return True
        beside = self.opcode.endswith(("-start", "-done", "-update"))
        return not (beside or self.opcode in _FREE or self.target in _BOOKKEEPING)

    @property
    def target(self) -> str:
        """Of a custom call."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def memory_bytes(self) -> int:
        """Of the result in HBM: all of it, or none if the compiler keeps it in the core, S(1)."""
        return sum(_sizes(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(1\)[^}]*\}", "", self.shape)))


class _Walk:
    """Follows a program from its entry and adds up what it meets."""

    def __init__(self, text: str):
        self.cycles = 0
        self.collectives: list[Collective] = []
        self.kernels: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        self.unknown_loops: list[str] = []
        self.activations = 0
        self.operations: list[Operation] = []
        self.entry, self._computations = _parse(text)
        header = text.partition("\n")[0]
        self._devices = _integer(r"num_partitions=(\d+)", header, 1) * _integer(
            r"replica_count=(\d+)", header, 1
        )
        self._channels: set[tuple[str, str]] = set()  # of collectives in fusions: (kind, channel)

    def follow(self, name: str, times: int) -> None:
        """Counts a computation that runs so often."""
        self.activations += self._activations(name)
        for instruction in self._computations[name].values():
            if instruction.takes_time and not _collective(instruction):
                self.operations.append(self._operation(name, instruction, times))
            if instruction.opcode == "while":
                self._follow_loop(instruction, times)
            elif instruction.opcode == "fusion":
                communicates = self._communicate_within(instruction, times)
                if not self._count_cycles(instruction, times) and not communicates:
                    self._count_kernel(name, instruction, times)
            elif _collective(instruction):
                self._communicate(name, instruction, times)
            else:
                for called in instruction.calls(_CALLS.get(instruction.opcode, "none")):
                    self.follow(called, times)
                if not self._count_cycles(instruction, times):
                    self._count_kernel(name, instruction, times)

    def _activations(self, name: str) -> int:
        """Bytes in HBM that are computed forward and read backward, by the names that JAX gives.

        Without the padding of their layouts.
        """
        lines = self._computations[name]
        users: dict[str, list[_Instruction]] = collections.defaultdict(list)
        for instruction in lines.values():
            for operand in instruction.operands:
                users[operand].append(instruction)

        def computed_by(instruction: _Instruction) -> _Instruction:
            while instruction.opcode in _ALIASES and instruction.operands[0] in lines:
                instruction = lines[instruction.operands[0]]
            return instruction

        def is_read_backward(instruction: _Instruction) -> bool:
            return any(
                is_read_backward(user) if user.opcode in _ALIASES else "transpose(" in user.source
                for user in users[instruction.name]
            )

        return sum(
            instruction.memory_bytes
            for instruction in lines.values()
            if (instruction.opcode not in _ALIASES or instruction.opcode == "get-tuple-element")
            and not instruction.shape.startswith("(")  # its elements count
            and re.search(r"^(?!.*transpose\().*jvp\(", computed_by(instruction).source)
            and is_read_backward(instruction)
        )

    def _follow_loop(self, loop: _Instruction, times: int) -> None:
        """`lax.scan` and `fori_loop` count from 0 in steps of 1 up to a constant."""
        (condition,), (body,) = loop.calls("condition"), loop.calls("body")
        trips = _integer(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes, 0)
        lines = self._computations[condition].values()
        limits = [_integer(r"^(\d+)\)", x.attributes, 0) for x in lines if x.opcode == "constant"]
        if not trips and len(limits) == 1:
            trips = limits[0]
        if not trips:
            self.unknown_loops.append(loop.name)
        self.follow(body, times * max(trips, 1))

    def _communicate_within(self, fusion: _Instruction, times: int) -> bool:
        """Counts the collectives in a fusion; whether there are any."""
        found = False
        for called in fusion.calls("calls"):
            for instruction in self._computations[called].values():
                if _collective(instruction):
                    # The TPU compiler's reduce-scatter is a fusion of this name.
                    scatters = called.startswith("all-reduce-scatter")
                    kind = "reduce-scatter" * scatters
                    self._communicate(called, instruction, times, kind, spread=True)
                    found = True
                elif instruction.opcode == "fusion":
                    found |= self._communicate_within(instruction, times)
        return found

    def _communicate(
        self,
        computation: str,
        instruction: _Instruction,
        times: int,
        kind: str = "",
        spread: bool = False,
    ) -> None:
        kind = kind or _collective(instruction)
        # An asynchronous collective is spread over several fusions, all with its channel; a send
        # may have the channel of a collective that has nothing to do with it. Those that stand
        # alone are each one of their own: of `shard_map` all have the same channel.
        if channel := re.search(r"\bchannel_id=\d+", instruction.attributes):
            if (kind, channel[0]) in self._channels:
                return
            if spread:
                self._channels.add((kind, channel[0]))
        devices = 1 if kind == "send" else _group_size(instruction.attributes, self._devices)
        size = sum(self._operand_bytes(computation, instruction))
        whole = size * devices if kind == "all-gather" else size
        self.collectives.append(Collective(kind, times, whole, devices))

    def _count_cycles(self, instruction: _Instruction, times: int) -> bool:
        cycles = instruction.cycles
        self.cycles += (cycles or 0) * times
        return cycles is not None

    def _count_kernel(self, computation: str, instruction: _Instruction, times: int) -> None:
        opcode = instruction.opcode
        if not instruction.takes_time or instruction.bytes <= 8:  # a number: the scalar unit's
            return
        kind = opcode
        if opcode == "fusion":
            kind = re.sub(r"(\.\d+|\.clone)+$", "", instruction.name)
        elif opcode == "custom-call":
            kind = instruction.target or opcode
        sizes = self._operand_bytes(computation, instruction)
        inner = [
            x.opcode for c in instruction.calls("calls") for x in self._computations[c].values()
        ]
        if {opcode, *inner} & {"gather", "dynamic-slice"}:  # reads no more of a table than it gives
            sizes = [min(size, instruction.bytes) for size in sizes]
        count = self.kernels[kind]
        count[0] += times
        count[1] += times * (instruction.bytes + sum(sizes))

    def _operation(self, name: str, instruction: _Instruction, times: int) -> Operation:
        """name: of its computation."""
        parts = list(self._parts(name, instruction))
        opcodes = frozenset(part.opcode for _, part in parts)
        products = [(place, part) for place, part in parts if part.opcode in ("convolution", "dot")]
        sources = [part.source for _, part in (*products, *parts)]
        read = sorted(self._read_bytes(name, x) for x in dict.fromkeys(instruction.operands))
        written = instruction.memory_bytes
        if opcodes & {"gather", "dynamic-slice"}:  # reads no more of a table than it gives
            read = [min(size, instruction.bytes) for size in read]
        if "dynamic-update-slice" in opcodes and read:  # writes a part of the largest, in place
            written = sum(read[:-1])
            read.pop()
        return Operation(
            instruction.name,
            opcodes,
            next(filter(None, sources), ""),
            times,
            instruction.cycles,
            sum(read) + written,
            sum(self._flops(place, part) for place, part in products),
            hash((instruction.cycles, *sorted((part.opcode, part.shape) for _, part in parts))),
        )

    def _parts(self, name: str, instruction: _Instruction) -> Iterator[tuple[str, _Instruction]]:
        """An instruction and what is fused into it, each with the name of its computation."""
        yield name, instruction
        if instruction.opcode == "fusion":
            for called in instruction.calls("calls"):
                for inner in self._computations[called].values():
                    yield from self._parts(called, inner)

    def _read_bytes(self, computation: str, name: str) -> int:
        """Of an operand, what comes from HBM; also if it was brought in ahead of time."""
        lines = self._computations[computation]
        if name not in lines:
            return 0
        while lines[name].opcode == "bitcast":
            name = lines[name].operands[0]
        one = lines[name]
        return one.bytes if one.opcode.endswith("-done") else one.memory_bytes

    def _flops(self, computation: str, product: _Instruction) -> int:
        """Of a convolution that stands for a matrix product.

        Of its spatial dimensions some are summed over: those of the window that are gone from the
        result. The others number the products of a batch, or belong to rows or columns.
        """
        labels = re.search(r"dim_labels=(\w+?)_(\w+)->(\w+)", product.attributes)
        if not labels:
            return 0
        lines = self._computations[computation]
        arrays = [lines[product.operands[0]], lines[product.operands[1]], product]
        left, right, result = (
            dict(zip(names, _dimensions(array.shape), strict=True))
            for names, array in zip(labels.groups(), arrays, strict=True)
        )
        summed = [size for name, size in right.items() if name.isdigit() and result[name] == 1]
        return 2 * math.prod(result.values()) * left["f"] * math.prod(summed)

    def _operand_bytes(self, computation: str, instruction: _Instruction) -> list[int]:
        lines = self._computations[computation]
        return [lines[name].bytes for name in instruction.operands if name in lines]


# What gives another name to the same bytes, or another place.
_ALIASES = {"get-tuple-element", "tuple", "bitcast", "copy-start", "copy-done", "opt-barrier"}
# How an instruction names the computations it runs; all branches of a condition are counted.
_CALLS = {
    "call": "to_apply",
    "async-start": "calls",
    "conditional": "branch_computations|true_computation|false_computation",
}


def _collective(instruction: _Instruction) -> str:
    """The kind of a collective, counted at its start; empty for anything else."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else ""


def _parse(text: str) -> tuple[str, dict[str, dict[str, _Instruction]]]:
    """The entry's name, and instructions by computation and name."""
    entry, computations = "", {}
    lines: dict[str, _Instruction] = {}
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.-]+) \(", line)):
            computations[header[2]] = lines = {}
            entry = header[2] if header[1] else entry
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", line):
            name, shape, opcode, rest = match.groups()
            operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            lines[name] = _Instruction(
                name, opcode, shape, sum(_sizes(shape)), tuple(operands), rest
            )
    return entry, computations


def _dimensions(shape: str) -> list[int]:
    """Of an array: `f32[2,3]{1,0}` -> [2, 3]."""
    return [int(n) for n in shape[shape.index("[") + 1 : shape.index("]")].split(",") if n]


def _sizes(shape: str) -> Iterator[int]:
    """Bytes of each array in a shape, as `(f32[2,3]{1,0}, u8[4])`."""
    for kind, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = 8 if kind == "pred" else _integer(r"(\d+)", kind, 0)  # a token has none
        yield math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one group of `replica_groups`, in any of its notations; none given: all."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):  # [groups, size]
        return int(match[1])
    # Axes of a mesh, or parts of them: mesh['a'=4,'b'=2] {'a','b':(1)2}
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _integer(pattern: str, text: str, default: int) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else default
