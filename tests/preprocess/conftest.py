"""Class folders with the names that ImageNet has, for the tests of the layouts in which it is handed out."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_layouts import write_wnid_folders


@pytest.fixture(scope="session")
def wnid_folders(raw_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw_folder` with wnids as classes and numbered val images, side by side with nothing."""
    folder = tmp_path_factory.mktemp("wnids") / "tiny"
    write_wnid_folders(raw_folder, folder)
    return folder
