"""TensorBoard's events of a run, which say what `metrics.jsonl` says: each number once.

An events file is a sequence of records (length, checksum, protocol buffer, checksum). A record is
given to the system when it is written, so that a killed process loses none; and what is missing or
too much all the same is put right when the run goes on.
"""

import itertools
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from bert_jax.common.files import written_whole

# tensorboardX imports PyTorch where it is installed: seconds of every start, for nothing of ours.
_hides_torch = "torch" not in sys.modules
if _hides_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.record_writer import masked_crc32c  # noqa: E402

if _hides_torch:
    del sys.modules["torch"]

_NAME = "events.out.tfevents."  # how TensorBoard knows them


class Events:
    """The events of a run in a folder; a start writes a file of its own."""

    def __init__(self, folder: Path, step: int, expected: Iterable[Mapping[str, Any]]):
        """Continues after `step`.

        expected: the lines of metrics.jsonl up to there, whose numbers must be there once.
        """
        folder.mkdir(parents=True, exist_ok=True)
        continues = _put_right(folder, step, expected)
        self._path = _new_file(folder)
        self._file = self._path.open("ab")
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if continues:  # a TensorBoard that is open forgets what was after it
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of metrics.jsonl.

        Raises: OSError, with the file's name: it cannot be written.
        """
        try:
            for tag, value in _numbers(line):
                self._write(_scalar(tag, value, line["step"]))
            self._file.flush()
        except OSError as error:  # a full disk: it does not say of which file
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(_record(event))


def _put_right(folder: Path, step: int, expected: Iterable[Mapping[str, Any]]) -> bool:
    """Makes the events those of the expected lines; says whether there are any.

    What is there once stays as it is, with the time when it happened.
    """
    old = sorted(folder.glob(f"{_NAME}*"))
    found: dict[tuple[str, int], Event] = {}
    count = 0
    for event in itertools.chain.from_iterable(map(_read, old)):
        for value in event.summary.value:
            found[value.tag, event.step] = event
            count += 1
    wanted = [(tag, line["step"], value) for line in expected for tag, value in _numbers(line)]
    if len(wanted) == count and all((tag, at) in found for tag, at, _ in wanted):
        return bool(wanted)
    with written_whole(_new_file(folder)) as made, made.open("wb") as file:
        file.write(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        for tag, at, value in wanted:
            file.write(_record(found.get((tag, at)) or _scalar(tag, value, at)))
    for path in old:
        path.unlink()
    return True


def _new_file(folder: Path) -> Path:
    """A name that sorts after those that are there."""
    begin = f"{_NAME}{int(time.time())}.{socket.gethostname()}"
    names = (folder / f"{begin}.{number}" for number in itertools.count())
    return next(path for path in names if not path.exists())


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of each number of a line of metrics.jsonl."""
    metrics = {n: value for n, value in line.items() if n not in ("step", "split", "time")}
    for name, value in {**metrics, **line.get("time", {})}.items():
        yield f"{line['split']}/{name}", value


def _scalar(tag: str, value: float, step: int) -> Event:
    event = Event(wall_time=time.time(), step=step)
    event.summary.value.add(tag=tag, simple_value=value)
    return event


def _record(event: Event) -> bytes:
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return b"".join([length, next(checks), data, next(checks)])


def _read(path: Path) -> Iterator[Event]:
    """The events of a file, up to where it is cut off or damaged."""
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (size,) = struct.unpack("<Q", head[:8])
            if struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                return
            data = file.read(size)
            if len(file.read(4)) < 4:
                return
            try:
                yield Event.FromString(data)
            except DecodeError:
                return
