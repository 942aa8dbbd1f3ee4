"""The driver's log: a file of our own or the user's, or the driver's buffer; with a driver that is played."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from bcg.device import driver_log
from bcg.device.driver_log import MAX_CHARACTERS, VARIABLE, LogFile, keep_log, last_lines, listen
from bcg_cli import device as cli_device
from bcg_cli.options import Device

LINE = "[12:00:00.000][1][CUDA][E] operation not permitted when stream is capturing"


@dataclass
class Driver:
    """Reads the variable when it is loaded, here by its initialization, and logs to the file that it names.

    Attributes:
        buffer: What the calls of newer drivers give; None for a driver without them.
    """

    is_initialized: bool = False
    path: str | None = None
    buffer: list[str] | None = None
    num_initializations: int = field(default=0)

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...] | None:
        if name == "cuInit":
            self.is_initialized, self.path = True, os.environ.get(VARIABLE)
            self.num_initializations += 1
            return (0,)
        if self.buffer is None:
            return None
        if name == "cuLogsCurrent":
            return (0, len(self.buffer))
        assert name == "cuLogsDumpToMemory"
        mark, memory, size, _ = arguments
        text = "".join(f"{line}\n" for line in self.buffer[mark:]).encode()
        assert len(text) < size == len(memory)
        memory[: len(text)] = text
        return (0, mark, len(text))

    def log(self, *lines: str) -> None:
        if self.buffer is not None:
            self.buffer += lines
        if self.path is not None:
            with Path(self.path).open("a") as file:
                file.writelines(f"{line}\n" for line in lines)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    played = Driver()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(driver_log, "_call", played.call)
    monkeypatch.setattr(driver_log, "_is_driver_loaded", lambda: played.is_initialized)
    monkeypatch.setattr(driver_log, "_process", driver_log._Process())
    driver_log._has_buffer.cache_clear()
    yield played
    driver_log._has_buffer.cache_clear()


def test_a_file_is_read_from_a_mark_on(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    mark = log.mark()
    assert log.since(mark) == ""
    log.path.write_text("one\ntwo\n")
    assert log.since(mark) == "one\ntwo\n"
    mark = log.mark()
    with log.path.open("ab") as file:
        file.write(b"three \xff\n")
    assert log.since(mark) == "three �\n"
    log.path.write_text("new\n")
    assert log.since(mark) == "new\n"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    log.path.write_text("x" * 10**6 + "\nlast\n")
    assert len(log.since(0)) <= 25_600
    assert last_lines(log.since(0)) == "last"


def test_the_last_lines_are_told() -> None:
    assert last_lines("") == ""
    assert last_lines(f"{LINE}\n\n  second\x1b[31m \n") == f"{LINE}\nsecond [31m"
    lines = [f"{index} {'x' * 50}" for index in range(100)]
    told = last_lines("\n".join(lines)).splitlines()
    assert told == lines[-len(told) :]
    assert len("\n".join(told)) <= MAX_CHARACTERS < len("\n".join(told)) + 60
    assert last_lines("y" * 10_000) == "y" * (MAX_CHARACTERS - 1) + "…"
    assert last_lines("y" * 10_000 + "\nlast") == "last"


def test_a_file_of_our_own_for_the_time_of_the_initialization(driver: Driver) -> None:
    keep_log()
    assert driver.num_initializations == 1
    assert driver.path is not None and Path(driver.path).is_file()
    assert VARIABLE not in os.environ
    driver.log("before")
    said = listen()
    assert said() == ""
    driver.log(LINE, "after")
    assert said() == f"{LINE}\nafter"
    keep_log()
    assert driver.num_initializations == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from bcg.device import driver_log

def call(name, *arguments):
    path = os.environ[driver_log.VARIABLE]
    Path(path).write_text("a line")
    return (0,)

driver_log._call = call
driver_log._is_driver_loaded = lambda: False
driver_log.keep_log()
assert driver_log._process.file.since(0) == "a line"
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop(VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path) == []


def test_once_the_driver_is_loaded_it_is_too_late(driver: Driver) -> None:
    driver.call("cuInit")
    keep_log()
    assert driver.num_initializations == 1
    assert listen()() == ""


def test_the_users_file_stays_the_users(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    monkeypatch.setenv(VARIABLE, str(path))
    keep_log()
    assert driver.num_initializations == 0
    driver.call("cuInit")
    said = listen()
    driver.log(LINE)
    assert said() == LINE
    assert os.environ[VARIABLE] == str(path)


@pytest.mark.parametrize("value", ["stderr", "stdout", "", "/nowhere/log"])
def test_elsewhere_it_can_not_be_read(driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    keep_log()
    assert driver.num_initializations == 0
    assert listen()() == ""


def test_the_drivers_buffer_comes_first(driver: Driver) -> None:
    driver.buffer = ["before"]
    driver.call("cuInit")
    said = listen()
    driver.log(LINE)
    assert said() == LINE


def test_without_a_driver_there_is_no_log(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_log, "_call", lambda name, *arguments: None)
    keep_log()
    assert driver_log._process.file is None
    assert listen()() == ""


def test_a_missing_call_is_no_error() -> None:
    assert driver_log._call("cuNothingOfThatName") is None


def test_the_command_line_keeps_it_before_torch_looks_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(driver_log, "keep_log", lambda: order.append("keep"))
    monkeypatch.setattr(cli_device, "why_no_gpu", lambda: order.append("look"))
    assert cli_device.resolve_device(Device.cpu) == torch.device("cpu")
    assert order == []
    assert cli_device.resolve_device(Device.auto) == torch.device("cuda")
    assert order == ["keep", "look"]
