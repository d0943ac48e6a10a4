"""The state of an output folder: complete, unfinished, or broken."""
