"""`python -m training.export (--run ID | --checkpoint PATH | --weights FILE --recipe NAME) --format F --output FILE`:
a network as a file for another runtime, which is ONNX, TorchScript, safetensors or a state dict.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from atomic_files import atomic_write
from command_line import CommandParser
from errors import InputError
from training.cli import resolve, run_command
from training.load_model import add_model_arguments, load_model
from training.serving.formats import FORMATS, ExportError, export


def main(arguments: Sequence[str]) -> None:
    """Export, check the logits of what was exported, write the file, and say so."""
    parser = CommandParser(prog="python -m training.export", description="Write a network to a file.")
    add_model_arguments(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--data", metavar="DIR", help="with --weights: shards with the same classes")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="replaced if it exists")
    options = parser.parse_args(arguments)
    output = Path(resolve("--output", options.output, Path.cwd()))
    check_output(output, options.format)
    trained = load_model(options, Path.cwd(), options.data)
    try:
        content, difference = export(trained, options.format)
    except ExportError as error:
        sys.exit(f"error: {error}; {output} is not written")
    try:
        atomic_write(output, content)
    except OSError as error:
        raise InputError(f"--output is {output}: it cannot be written: {error.strerror}; use another place") from error
    print(f"{options.format} of {trained.name}: logits differ by at most {difference:.1e} of the largest one")
    print(f"{output}: {len(content) / 1e6:.1f} MB")


def check_output(output: Path, format_name: str) -> None:
    """Raise `InputError` unless the name is one by which readers know the format, in a folder that exists."""
    suffixes = FORMATS[format_name].suffixes
    if output.suffix not in suffixes:
        endings = " or ".join(suffixes)
        raise InputError(
            f"--output is {output}: readers know {format_name} by its name; use one that ends in {endings}"
        )
    if not output.parent.is_dir():
        raise InputError(f"--output is {output}: there is no folder {output.parent}; use one that exists")
    if output.is_dir():
        raise InputError(f"--output is {output}: it is a folder; use the name of a file")


if __name__ == "__main__":
    sys.exit(run_command(main))
