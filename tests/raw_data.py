"""Raw images for tests: three classes that a small network tells apart at once, and what real collections hold."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image, ImageDraw

# A class is told by its figure and by the channel in which that is bright.
RAW_CLASSES = ("blue-disc", "green-bars", "red-square")
TINY_SHORT_SIDE = 64
TINY_SHARD_SAMPLES = 16
MAX_REJECTED = 0.02  # 3 of 151
RAW_SAMPLES = {"train": 34, "val": 14}  # of each class


def draw_raw(name: str, rng: random.Random) -> Image.Image:
    """Draw an image of the class `name`, in a random size between 70 and 130 pixels."""
    size = (rng.randint(70, 130), rng.randint(70, 130))
    channel = {"red": 0, "green": 1, "blue": 2}[name.split("-")[0]]
    ground = [rng.randint(0, 110) for _ in range(3)]
    colour = [rng.randint(0, 90) for _ in range(3)]
    colour[channel] = rng.randint(190, 255)
    picture = Image.new("RGB", size, tuple(ground))
    draw = ImageDraw.Draw(picture)
    side = rng.randint(30, 50)
    left, top = (rng.randint(10, length - side - 10) for length in size)
    if name == "blue-disc":
        draw.ellipse((left, top, left + side, top + side), fill=tuple(colour))
    elif name == "red-square":
        draw.rectangle((left, top, left + side, top + side), fill=tuple(colour))
    else:
        for at in range(0, side, 12):
            draw.rectangle((left, top + at, left + side, top + at + 6), fill=tuple(colour))
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Return an image's file as bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write_raw_folder(folder: Path) -> None:
    """Fill `folder` with train/<class>/ and val/<class>/; among the files are the oddities of real collections."""
    rng = random.Random(7)
    for split, count in RAW_SAMPLES.items():
        for name in RAW_CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                data = encoded(draw_raw(name, rng), quality=90)
                (folder / split / name / f"{name}_{number:03d}.JPEG").write_bytes(data)
    odd = folder / "train" / "red-square"
    picture = draw_raw("red-square", rng)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees
    (odd / "cmyk.jpg").write_bytes(encoded(picture.convert("CMYK")))
    (odd / "grey.jpg").write_bytes(encoded(picture.convert("L")))
    (odd / "turned.jpg").write_bytes(encoded(picture, exif=exif))
    (odd / "really a png.JPEG").write_bytes(encoded(picture, "PNG"))
    (odd / "truncated.jpg").write_bytes(encoded(picture)[:-200])
    (odd / "empty.jpg").write_bytes(b"")
    (odd / "notes.txt").write_text("not an image, and not meant as one")
    (folder / "val" / "blue-disc" / "page.jpg").write_bytes(b"<html>not found</html>")
