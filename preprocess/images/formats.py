"""Formats of image files, told by their first bytes: an ending is what somebody wrote behind a name."""

from __future__ import annotations

import re
import struct

MAGIC_BYTES = 32
"""The number of bytes at the beginning of a file that `format_of` needs."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"8BPS\0\x01", "Photoshop"),
)
# The brand of an ISO base media file, at byte 8 after `ftyp`: https://mp4ra.org/registered-types/brands
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"mif1"), "HEIC")}
_PPM = re.compile(rb"P[1-6]\s+(#|\d+\s+(#|\d+\s))")  # width and height, or a comment before them
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the header that follows; text may begin with BM, too


def format_of(head: bytes) -> str | None:
    """Return the image format, such as `JPEG`, of a file that begins with `head`; None if it is no known image.

    Formats that no build can read (HEIC, JPEG 2000, JPEG XL, Photoshop) are told as well: they are images.
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "AVIF" if b"avif" in head[16:] else _BRANDS.get(head[8:12])
    if _PPM.match(head):
        return "PPM"
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "BMP"
    return None
