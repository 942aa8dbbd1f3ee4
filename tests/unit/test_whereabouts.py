"""Where a forward is."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
import transformers

import bcg.attention
from bcg.whereabouts import from_search_path, is_users, source_line_of


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
