"""The size of a JPEG image, from its header."""

from __future__ import annotations

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame (ITU T.81, table B.1): all of C0 to CF but DHT, JPG and DAC."""


def jpeg_size(content: bytes | memoryview) -> tuple[int, int]:
    """Return height and width in pixels of a JPEG file.

    Raises:
        ValueError: it is not a JPEG file, or its header is not whole.
    """
    if content[:2] != b"\xff\xd8":
        raise ValueError("it is not a JPEG file")
    at = 2
    try:
        while content[at] == 0xFF:
            marker = content[at + 1]
            if marker in _FRAMES:
                return content[at + 5] << 8 | content[at + 6], content[at + 7] << 8 | content[at + 8]
            # A marker may be preceded by any number of fill bytes FF.
            at += 1 if marker == 0xFF else 2 + (content[at + 2] << 8 | content[at + 3])
    except IndexError:
        raise ValueError("its JPEG header is cut off") from None
    raise ValueError("its JPEG header is damaged")
