"""Hooks that cannot fail silently: unknown names are refused, and a hook that never fired is an error."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from safecircuits.model.in_use import used_alone
from safecircuits.model.sites import HookedModel, require_hooked

HookFn = Callable[[Tensor], Tensor | None]
"""What happens to an activation: return a new tensor, or None to leave it as it is."""

NamedHookFn = Callable[..., Tensor | None]
"""The same as TransformerLens spells it, with a second argument ``hook``, the hook point."""


@contextmanager
def attached(
    model: HookedModel, hooks: Mapping[str, HookFn | NamedHookFn], *, per_token: bool = False
) -> Iterator[dict[str, int]]:
    """Attach ``hooks`` by hook name inside a ``with`` block; hooks that are already on the model stay in force.

    Args:
        hooks: functions of an activation. One that has an argument named ``hook``, as TransformerLens's have, is given
            the hook point there.
        per_token: promise that each hook treats every token by itself, whatever else is in the batch. Analyses may then
            share work between prompts; with any other hook on the model they run every prompt in full.

    Yields:
        How often each hook has fired so far.

    Raises:
        ValueError: on entry, for a name the model does not have.
        RuntimeError: on a normal exit, if a hook never fired: some hook points exist in name only; on entry, while
            another thread is using the model.

    Examples:
        >>> def halve(resid, hook):
        ...     return 0.5 * resid
        >>> with sc.attached(model, {"blocks.3.hook_resid_post": halve}) as fired:
        ...     answers = sc.generate(model, malicious)
        >>> fired["blocks.3.hook_resid_post"] > 0
        True
    """
    require_hooked(model)
    points = model.hook_dict  # a bridge builds the dictionary anew each time it is asked
    unknown = [name for name in hooks if name not in points]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(points), n=3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise ValueError(f"{type(model).__name__} has no hook point {unknown[0]!r}{hint}")
    fired = dict.fromkeys(hooks, 0)

    def counting(name: str, fn: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        named = _takes_hook(fn)

        # The hook point's own name is not the one it was asked for by on every backend, so close over ours.
        def run(activation: Tensor, hook: Any) -> Tensor | None:  # TransformerLens passes it by keyword
            fired[name] += 1
            return fn(activation, hook=hook) if named else fn(activation)

        return marked(run, "per_token") if per_token else run

    placed = []
    with used_alone(model):
        try:
            for name, fn in hooks.items():
                points[name].add_hook(counting(name, fn))
                placed.append((points[name], points[name].fwd_hooks[-1]))
            yield fired
        finally:
            for point, handle in placed:
                handle.hook.remove()
                if handle in point.fwd_hooks:  # unless the caller has reset the model's hooks
                    point.fwd_hooks.remove(handle)
    require_fired(fired)


F = TypeVar("F", bound=Callable[..., Any])


def marked(fn: F, *marks: str) -> F:
    """A hook that says of itself what ``hooks_in_force`` asks: that it is ``per_token``, or ``part_of_model``."""
    for mark in marks:
        setattr(fn, mark, True)
    return fn


def _takes_hook(fn: Callable[..., Any]) -> bool:
    try:
        return "hook" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a built-in function has none
        return False


def require_fired(fired: Mapping[str, int]) -> None:
    """Raise a RuntimeError that names the first hook that never fired."""
    silent = [name for name, count in fired.items() if count == 0]
    if silent:
        raise RuntimeError(
            f"hook point {silent[0]!r} never fired, so nothing was measured or changed there: run the model inside the "
            "block, or take another point, as some exist in name only"
        )


def hooks_in_force(model: HookedModel) -> tuple[bool, bool]:
    """Whether any hook is on the model, and whether all of them are known to treat each token by itself."""
    functions: list[Any] = []
    for point in {id(point): point for point in model.hook_dict.values()}.values():
        functions += [handle.user_hook for handle in (*point.fwd_hooks, *point.bwd_hooks)]
    for module in every_module(model):
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            # TransformerLens's own are the wrappers of the hooks above, and what a bridge wires between its parts;
            # transformers' own, once hidden states were asked for, only record; and a few belong to the model itself.
            if not getattr(hook, "part_of_model", False) and not str(getattr(hook, "__module__", "")).startswith(
                ("transformer_lens.", "transformers.")
            ):
                functions.append(hook)
    return bool(functions), all(getattr(function, "per_token", False) for function in functions)


@contextmanager
def without_hooks(model: HookedModel) -> Iterator[None]:
    """Inside the block hooks that others have placed do not act; afterwards all are in force again, in their order."""
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []

    def suspend(hooks: dict[int, Any], foreign: set[int]) -> None:
        if foreign:
            kept.append((hooks, dict(hooks)))
        for key in foreign & set(hooks):
            del hooks[key]

    with used_alone(model):
        try:
            for point in model.hook_dict.values():
                placed = {handle.hook.id for handle in point.fwd_hooks if not handle.is_permanent}
                suspend(point._forward_hooks, placed)
            for module in every_module(model):
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    suspend(hooks, {key for key, hook in hooks.items() if not _of_a_library(hook)})
            yield
        finally:
            for hooks, before in reversed(kept):
                hooks.clear()  # in place: the handles of those who placed them know this very dictionary
                hooks.update(before)


# Whose hooks are part of what a model computes: a bridge's wiring, a normed weight, dispatch over devices.
_OF_LIBRARIES = ("transformer_lens.", "transformers.", "torch.", "accelerate.", "peft.", "safecircuits.")


def _of_a_library(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_OF_LIBRARIES)


def every_module(model: HookedModel) -> list[nn.Module]:
    """The modules of a model; a bridge does not count those of the model it wraps among its own."""
    wrapped = getattr(model, "original_model", None)
    return [*model.modules(), *(() if wrapped is None else wrapped.modules())]
