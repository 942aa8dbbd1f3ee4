"""What an installed ``bcg-cli`` consists of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    return path


def test_top_level_names(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"bcg", "bcg_cli"}
    assert len(names) == 3


def test_every_module_asset_and_type_marker_is_in_it(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(root).as_posix()
        for root, package in ((ROOT, "bcg_cli"), (ROOT / "runtime", "bcg"))
        for path in (root / package).rglob("*.py")
    }
    assets = {f"bcg_cli/views/assets/{name}" for name in ("page.css", "page.js")}
    assert packed == {*sources, *assets, "bcg/py.typed", "bcg_cli/py.typed"}


def test_metadata(wheel: Path) -> None:
    from bcg import __version__

    assert wheel.name == f"bcg_cli-{__version__}-py3-none-any.whl"
    with ZipFile(wheel) as archive:
        folder = f"bcg_cli-{__version__}.dist-info"
        metadata = archive.read(f"{folder}/METADATA").decode()
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert "Name: bcg-cli\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Dist: torch>=2.11\n" in metadata
    assert "bcg = bcg_cli.entry:main" in scripts
