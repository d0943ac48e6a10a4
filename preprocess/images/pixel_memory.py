"""Where Pillow keeps an image's pixels, so that C can read them without a copy.

Pillow exports them through Arrow's C data interface (https://arrow.apache.org/docs/format/CDataInterface.html); the
address is all that is taken from there. A pixel takes four bytes, also that of an RGB image.
"""

from __future__ import annotations

import contextlib
import ctypes

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


def pixel_memory(image: Image.Image) -> tuple[int | bytes, object]:
    """Return the pixels row by row, four bytes each, to be read only: their address or a copy, and who keeps them.

    Pixels that do not lie in one piece (Pillow's own images over 16 MiB, or those that borrow somebody's buffer) are
    copied.

    Args:
        image: RGB or RGBX; the fourth bytes hold nothing of use.

    Returns:
        What C takes as a pointer, and what must be held as long as that is read.
    """
    # Rows may be padded where Pillow was told to align them.
    if not image.readonly and image.width * 4 % Image.core.get_alignment() == 0:
        with contextlib.suppress(AttributeError, ValueError):  # an older Pillow; pixels in several pieces
            capsules = image.__arrow_c_array__()
            array = _ArrowArray.from_address(_capsule_pointer(capsules[1], b"arrow_array"))
            levels = array.children[0].contents
            address = levels.buffers[1]
            if address and array.length == image.width * image.height and levels.length == 4 * array.length:
                return address, capsules
    copy = image.tobytes("raw", "RGBX")
    return copy, copy
