"""One data directory, one proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpull.proxy.data_dir import DataDirError, owned


def test_the_directory_is_made_and_held(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"

    with owned(path):
        with pytest.raises(DataDirError, match="in use by another") as busy, owned(path):
            pass
        assert "--data-dir" in busy.value.remedy
    with owned(path):
        pass


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(DataDirError, match="can not write") as failure, owned(tmp_path / "file" / "data"):
        pass

    assert "--data-dir" in failure.value.remedy
