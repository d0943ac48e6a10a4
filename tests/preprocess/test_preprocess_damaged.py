"""A build over two thousand damaged files: each becomes a sample or is listed, and nothing crashes or hangs."""

import io
from pathlib import Path

import odd_images
import pytest
from commands import run_command
from PIL import Image
from shard_reading import read_json, read_samples

COUNT = 2000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_damaged_file_is_a_sample_or_a_listed_rejection(tmp_path: Path) -> None:
    for number, data in enumerate(odd_images.mutations(COUNT, seed=0)):
        path = tmp_path / "in" / "train" / str(number % 2) / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    done = run_command(
        *("preprocess.build_shards", "--input", tmp_path / "in", "--output", tmp_path / "out"),
        *("--val-fraction", 0.1, "--short-side", 32, "--workers", 2, "--max-rejected", 1),
    )
    assert done.returncode == 0, done.stderr
    page = read_json(tmp_path / "out")
    found = {Path(entry["source"]).stem for entry in page["rejected"]}
    assert all(entry["reason"] for entry in page["rejected"])
    assert COUNT // 5 < len(found) < COUNT * 4 // 5
    for split in ("train", "val"):
        for key, jpeg, _ in read_samples(tmp_path / "out", split):
            found.add(Path(key).name)
            with Image.open(io.BytesIO(jpeg)) as sample:
                sample.load()
                assert (sample.mode, min(sample.size)) == ("RGB", 32)
    assert len(found) == COUNT
    samples = sum(split["samples"] for split in page["splits"].values())
    assert samples + len(page["rejected"]) == COUNT
