"""Events in an outbox: in order, each once, through full disks and the death of whoever wrote or delivered them."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_study import python

from study.tracking import outbox
from study.tracking.outbox import Outbox

ADDRESS = "http://host space"


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"number": number, "text": "two\nlines", **more}


def take(box: Outbox, count: int) -> list[int]:
    """Read so many events, and say that they have arrived."""
    numbers = []
    for _ in range(count):
        found = box.get(10)
        assert found is not None
        assert found["text"] == "two\nlines"
        numbers.append(found["number"])
    box.delivered(box.position)
    return numbers


def rest(box: Outbox) -> list[int]:
    numbers = []
    while not box.exhausted:
        if (found := box.get(10)) is not None:
            numbers.append(found["number"])
    return numbers


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def adopt(folder: Path, address: str = ADDRESS) -> list[Outbox]:
    return list(Outbox.abandoned(folder, address))


# --- one driver -----------------------------------------------------------------------------------------------------
def test_events_come_out_in_order_and_the_file_goes_when_they_are_delivered(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "new" / "folder", ADDRESS)
    assert not list(tmp_path.iterdir()), "nothing is made before there is an event"
    for number in range(5):
        box.put(event(number))
    assert take(box, 3) == [0, 1, 2]
    box.put(event(5))
    box.finish()
    assert not box.exhausted
    assert take(box, 3) == [3, 4, 5]
    assert box.exhausted
    assert box.get(10) is None
    box.close()
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_waiting_ends_with_the_next_event_the_end_or_the_time(tmp_path: Path) -> None:
    box = Outbox(tmp_path, ADDRESS)
    assert box.get(0.01) is None
    assert not box.exhausted
    threading.Timer(0.05, box.put, [event(1)]).start()
    assert take(box, 1) == [1]
    threading.Timer(0.05, box.finish).start()
    assert box.get(10) is None
    assert box.exhausted
    box.close()


def test_many_writers_and_events_longer_than_what_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_READ", 100)
    box = Outbox(tmp_path, ADDRESS)

    def write(writer: int) -> None:
        for number in range(20):
            box.put(event(100 * writer + number, long="x" * 17 * number))

    writers = [threading.Thread(target=write, args=(each,)) for each in range(8)]
    for writer in writers:
        writer.start()
    found = take(box, 160)
    assert sorted(found) == [100 * writer + number for writer in range(8) for number in range(20)]
    for writer in range(8):
        assert [number for number in found if number // 100 == writer] == [100 * writer + each for each in range(20)]
    box.close()


def test_what_json_does_not_know_does_not_stop_a_sweep(tmp_path: Path) -> None:
    box = Outbox(tmp_path, ADDRESS)
    box.put(event(1, odd=Path("x"), value=float("nan")))
    found = box.get(10)
    assert found is not None
    assert found["odd"] == "x"
    assert found["value"] != found["value"]
    box.close()


def test_writing_after_the_end_is_no_error(tmp_path: Path) -> None:
    box = Outbox(tmp_path, ADDRESS)
    box.put(event(1))
    box.close()
    box.put(event(2))


# --- dead drivers ---------------------------------------------------------------------------------------------------
def test_the_next_driver_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    box = Outbox(tmp_path, ADDRESS)
    for number in range(5):
        box.put(event(number))
    take(box, 2)
    assert box.get(10) is not None, "read, but not delivered"
    assert adopt(tmp_path) == [], "its driver lives"
    box.close()
    (found,) = adopt(tmp_path)
    before = found.delivered_before
    numbers = [(read["number"], found.position > before) for _ in range(5) if (read := found.get(0))]
    assert numbers == [(0, False), (1, False), (2, True), (3, True), (4, True)]
    assert found.exhausted
    assert adopt(tmp_path) == [], "one driver at a time"
    found.delivered(found.position)
    found.close()
    assert not list(tmp_path.iterdir())


def test_what_has_been_delivered_once_stays_delivered(tmp_path: Path) -> None:
    box = Outbox(tmp_path, ADDRESS)
    for number in range(4):
        box.put(event(number))
    take(box, 3)
    box.close()
    (second,) = adopt(tmp_path)
    assert second.get(0) is not None  # events from the beginning, for what they say about later ones
    second.delivered(second.position)
    second.close()
    (third,) = adopt(tmp_path)
    start = third.delivered_before
    assert [read["number"] for _ in range(4) if (read := third.get(0)) and third.position > start] == [3]
    third.close()


def test_outboxes_of_dead_drivers_come_oldest_first_and_only_those_of_the_address(tmp_path: Path) -> None:
    for number in range(3):
        box = Outbox(tmp_path, ADDRESS)
        box.put(event(number))
        box.close()
    other = Outbox(tmp_path, "http://another host space")
    other.put(event(9))
    other.close()
    found = adopt(tmp_path)
    assert [rest(box) for box in found] == [[0], [1], [2]]
    for box in found:
        box.delivered(box.position)
        box.close()
    assert [rest(box) for box in adopt(tmp_path, "http://another host space")] == [[9]]


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_line_that_was_torn_by_the_death_of_its_driver_is_left_out(tmp_path: Path, cut: int) -> None:
    box = Outbox(tmp_path, ADDRESS)
    box.put(event(1))
    box.put(event(2))
    box.close()
    path = only(tmp_path)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    (found,) = adopt(tmp_path)
    assert rest(found) == [1]
    found.delivered(found.position)
    found.close()
    assert not list(tmp_path.iterdir()), "nothing is left to be delivered"


def test_lines_and_headers_that_are_damaged_cost_no_other_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox(tmp_path, ADDRESS)
    for number in range(3):
        box.put(event(number))
    take(box, 1)
    box.close()
    path = only(tmp_path)
    header, first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"?" * (len(header) - 1) + b"\n" + first + b"\0" * (len(second) - 1) + b"\n" + b"7\n" + third)
    (found,) = adopt(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert rest(found) == [0, 2]
    assert sum("is left out" in message for message in caplog.messages) == 2
    found.close()


def test_an_outbox_without_an_event_is_removed(tmp_path: Path) -> None:
    box = Outbox(tmp_path, ADDRESS)
    box.put(event(1))
    box.close()
    path = only(tmp_path)
    path.write_bytes(path.read_bytes()[:5])
    (found,) = adopt(tmp_path)
    assert rest(found) == []
    found.delivered(found.position)
    found.close()
    assert not list(tmp_path.iterdir())


PROGRAM = """
import pathlib, sys
from study.tracking.outbox import Outbox
box = Outbox(pathlib.Path(sys.argv[1]), sys.argv[2])
number = 0
while True:
    box.put({"number": number, "text": "two\\nlines", "long": "x" * (number % 50)})
    number += 1
    print(number, flush=True)
"""


def test_whatever_was_put_before_a_kill_is_there(tmp_path: Path) -> None:
    process = python("-c", PROGRAM, str(tmp_path), ADDRESS)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 50:
            break
    process.send_signal(signal.SIGKILL)
    last = int(([line, *process.stdout.read().split()])[-1])
    process.wait()
    (found,) = adopt(tmp_path)
    numbers = rest(found)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (last, last + 1)
    found.close()


# --- full disks -----------------------------------------------------------------------------------------------------
class FullDisk:
    """Takes ``room`` bytes of events more, then none until there is room again; headers are written in place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self._write = os.pwrite
        monkeypatch.setattr(outbox.os, "pwrite", self.pwrite)

    def pwrite(self, file: int, content: bytes, offset: int) -> int:
        if offset == 0:
            return self._write(file, content, offset)
        taken = min(self.room, len(content))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return self._write(file, content[:taken], offset)


@pytest.mark.parametrize("room", [0, 30, 100])
def test_full_disk_keeps_events_in_memory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    box = Outbox(tmp_path, ADDRESS)
    box.put(event(0))
    disk = FullDisk(monkeypatch)
    disk.room = room
    for number in range(1, 10):
        box.put(event(number))
    assert box.problem is not None
    assert "No space left on device" in box.problem
    assert str(tmp_path) in box.problem
    assert take(box, 4) == [0, 1, 2, 3]
    disk.room = 10**6
    box.put(event(10))
    assert box.problem is None
    assert take(box, 2) == [4, 5]
    box.close()
    (found,) = adopt(tmp_path)
    start = found.delivered_before
    numbers = [read["number"] for _ in range(20) if (read := found.get(0)) and found.position > start]
    assert numbers == [6, 7, 8, 9, 10], "what had been in memory is on disk"
    found.close()


def test_memory_that_has_been_read_is_no_problem_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch)
    box = Outbox(tmp_path, ADDRESS)
    box.put(event(0))
    box.put(event(1))
    assert box.problem is not None
    box.finish()
    assert rest(box) == [0, 1]
    assert box.problem is None
    box.delivered(box.position)
    box.close()
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_made_is_a_problem_but_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    box = Outbox(tmp_path / "file" / "folder", ADDRESS)
    box.put(event(0))
    assert box.problem is not None
    assert adopt(tmp_path / "file" / "folder") == []
    assert take(box, 1) == [0]
    box.close()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system takes root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        box = Outbox(disk / "outbox", ADDRESS)
        for number in range(2000):
            box.put(event(number))
        assert box.problem is not None
        assert "No space left" in box.problem
        assert take(box, 1990) == list(range(1990))
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        box.put(event(2000))
        assert box.problem is None
        box.close()
        (found,) = adopt(disk / "outbox")
        start = found.delivered_before
        numbers = [read["number"] for _ in range(2100) if (read := found.get(0)) and found.position > start]
        assert numbers == list(range(numbers[0], 2001))
        found.delivered(found.position)
        found.close()
    finally:
        subprocess.run(["umount", disk], check=True)
