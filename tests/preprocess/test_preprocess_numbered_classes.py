"""Class numbers in the place of names, as label files and Parquet files have them."""

import shutil
from pathlib import Path

from preprocess.build_shards import main
from preprocess.manifest import read_manifest


def test_numbers_with_zeros_before_them_are_positions_in_the_list_of_classes(raw_folder: Path, tmp_path: Path) -> None:
    """With ten classes and more, numbers get zeros, so that their order as text is that of the numbers."""
    names = sorted(path.name for path in (raw_folder / "val").iterdir())
    for number, name in enumerate(names):
        shutil.copytree(raw_folder / "val" / name, tmp_path / "in" / "val" / f"{number:03d}")
    known = [*names, *(f"z{number}" for number in range(9))]
    (tmp_path / "ids.txt").write_text("\n".join(known))
    command = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--classes", tmp_path / "ids.txt"]
    command += ["--splits", "val", "--short-side", 16, "--max-rejected", 0.1, "--workers", 1]
    assert main([str(part) for part in command]) == 0
    assert [known_class.id for known_class in read_manifest(tmp_path / "out").classes] == known
