"""State dicts as training scripts save them: inside a checkpoint, under the names of wrapped modules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from errors import InputError

STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys that hold the state dict in checkpoints of timm and Lightning, of PyTorch's tutorials, and of torchvision."""
WRAPPERS = ("module", "_orig_mod")
"""Names under which DataParallel and torch.compile hold the module that they wrap, at any depth."""
ATTRIBUTE = "model"
"""Name under which Lightning modules usually hold their network."""


def unwrap_state_dict(content: object, source: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a file by the parameter names of the network itself.

    `content` is a state dict, or a dict with one under a key of `STATE_KEYS`. In the names, `module.` and `_orig_mod.`
    are dropped anywhere (`features.module.0.weight`), and `model.` at the beginning.

    Raises:
        InputError: it is neither, or two names become the same; names `source`.
    """
    found = [content, *(content.get(key) for key in STATE_KEYS)] if isinstance(content, dict) else []
    state = next((candidate for candidate in found if _is_state_dict(candidate)), None)
    if state is None:
        raise InputError(
            f"{source} is not a state dict: it must map parameter names to tensors, itself or under the key "
            f"{' or '.join(map(repr, STATE_KEYS))}; use the result of model.state_dict()"
        )
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = _bare_name(name)
        if bare in plain:
            raise InputError(f"{source} has several tensors for {bare}; use the state dict of a single network")
        plain[bare] = tensor
    return plain


def check_fits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raise `InputError` unless `state` has the names and shapes of `wanted`; name `source` and what differs."""
    shapes = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    problems = [_shorten(shapes), _shorten(missing, "missing: "), _shorten(unknown, "unknown: ")]
    if any(problems):
        raise InputError(f"{source} is of another network: {'; '.join(filter(None, problems))}")


def _shorten(items: list[str], title: str = "") -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{title}{', '.join(items[:3])}{more}" if items else ""


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _bare_name(name: str) -> str:
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts[1:] if parts[:1] == [ATTRIBUTE] else parts)
