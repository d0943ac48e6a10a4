"""Sources of raw images: one module for each layout, all read as the same catalogue."""

from preprocess.sources.catalogue import (
    IMAGE_ENDINGS,
    SPLITS,
    ArchiveRef,
    Catalogue,
    FileRef,
    ImageRef,
    RawImage,
    RowRef,
    printable,
    shuffle_key,
)
from preprocess.sources.layouts import LAYOUTS, open_source
from preprocess.sources.reading import RawFiles, read_image
from preprocess.sources.records import UnpackTask, unpack
from preprocess.sources.source import Source

__all__ = [
    "IMAGE_ENDINGS",
    "LAYOUTS",
    "SPLITS",
    "ArchiveRef",
    "Catalogue",
    "FileRef",
    "ImageRef",
    "RawFiles",
    "RawImage",
    "RowRef",
    "Source",
    "UnpackTask",
    "open_source",
    "printable",
    "read_image",
    "shuffle_key",
    "unpack",
]
