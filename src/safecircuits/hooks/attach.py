"""Hooks that cannot fail silently: unknown names are refused, and a hook that never fired is an error."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from safecircuits.sites import HookedModel

HookFn = Callable[[Tensor], Tensor | None]
"""What happens to an activation: return a new tensor, or None to leave it as it is."""


@contextmanager
def attached(model: HookedModel, hooks: Mapping[str, HookFn]) -> Iterator[dict[str, int]]:
    """Attach ``hooks`` by hook name for the length of the block; hooks that others have placed stay in force.

    Yields:
        How often each hook has fired so far.

    Raises:
        ValueError: on entry, for a name the model does not have.
        RuntimeError: on a normal exit, if a hook never fired: some hook points exist in name only.
    """
    unknown = [name for name in hooks if name not in model.hook_dict]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(model.hook_dict), n=3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise ValueError(f"{type(model).__name__} has no hook point {unknown[0]!r}{hint}")
    fired = dict.fromkeys(hooks, 0)

    def counting(name: str, fn: HookFn) -> Callable[..., Tensor | None]:
        # The hook point's own name is not the one it was asked for by on every backend, so close over ours.
        def run(activation: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001  TransformerLens passes it by keyword
            fired[name] += 1
            return fn(activation)

        return run

    with model.hooks(fwd_hooks=[(name, counting(name, fn)) for name, fn in hooks.items()]):
        yield fired
    silent = [name for name, count in fired.items() if count == 0]
    if silent:
        raise RuntimeError(f"hook point {silent[0]!r} never fired, so nothing was measured or changed there")
