"""Where Pillow keeps an image's pixels, so that C can read them without a copy.

Pillow exports them through Arrow's C data interface (https://arrow.apache.org/docs/format/CDataInterface.html); the
address is all that is taken from there. A pixel takes four bytes, also that of an RGB image.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from PIL import Image


class _ArrowArray(ctypes.Structure):
    """The interface's `struct ArrowArray`, up to what is read here."""


_ArrowArray._fields_ = (
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
)

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_capsule_pointer.restype = ctypes.c_void_p


@contextlib.contextmanager
def pixel_memory(image: Image.Image) -> Iterator[ctypes.c_void_p | bytes]:
    """Give, inside a `with`, the pixels row by row, four bytes each, to be read only.

    Pixels that do not lie in one piece (Pillow's own images over 16 MiB, or those that borrow somebody's buffer) are
    copied.

    Args:
        image: RGB or RGBX; the fourth bytes hold nothing of use.
    """
    capsules = None  # they hold the memory until this function is left
    # Rows may be padded where Pillow was told to align them.
    if not image.readonly and image.width * 4 % Image.core.get_alignment() == 0:
        with contextlib.suppress(AttributeError, ValueError):  # an older Pillow; pixels in several pieces
            capsules = image.__arrow_c_array__()
    address = None
    if capsules is not None:
        array = _ArrowArray.from_address(_capsule_pointer(capsules[1], b"arrow_array"))
        levels = array.children[0].contents
        if array.length == image.width * image.height and levels.length == 4 * array.length:
            address = levels.buffers[1]
    yield ctypes.c_void_p(address) if address else image.tobytes("raw", "RGBX")
