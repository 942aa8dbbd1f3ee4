"""Where a forward is."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

import bcg.attention
from bcg.whereabouts import ModulePath, from_search_path, is_users, line_of, source_line_of
from tests.targets import Around


def test_a_file_is_told_from_where_python_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_search_path(bcg.attention.__file__) == "bcg/attention.py"
    assert from_search_path(transformers.__file__) == "transformers/__init__.py"
    own = str(tmp_path / "folder" / "model.py")
    assert from_search_path(own) == own
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(tmp_path / "folder")])
    assert from_search_path(own) == "model.py"


def test_a_report_names_no_folder_of_the_machine() -> None:
    assert from_search_path(source_line_of(bcg.attention.AttentionBreak.run)).startswith("bcg/attention.py:")
    assert source_line_of(len) == ""


def test_users_code_is_no_librarys(tmp_path: Path) -> None:
    assert is_users(str(tmp_path / "model.py"))
    assert is_users(transformers.__file__)
    for module in (torch, contextlib, bcg.attention):
        assert not is_users(str(module.__file__))


class AddsOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def test_the_compiler_leaves_alone_what_follows_modules() -> None:
    entered: list[str] = []
    left: list[str] = []
    inner = AddsOne()
    inner.compile(backend="eager", fullgraph=True)
    modules = ModulePath(lambda: entered.append(modules.path), left.append)
    with modules.followed():
        assert Around(inner)(torch.zeros(2)).tolist() == [1.0, 1.0]
    assert (entered, left) == (["Around", "inner"], ["inner", "Around"])


def test_a_frame_has_a_line() -> None:
    frame = sys._getframe()
    assert line_of(frame) == f"{__file__}:{frame.f_lineno}"
    assert line_of(None) == ""
