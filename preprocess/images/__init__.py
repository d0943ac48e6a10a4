"""One raw image -> one sample: decoding, resizing, encoding and colour statistics."""
