"""What works on which architecture: every capability against a plain Hugging Face computation with forward hooks.

    python tests/support.py            prints what the installed transformer-lens supports
    python tests/support.py --write    also replaces its rows in docs/reference/support.json and renders support.md
    … --write --lacking                leaves the rows that are there, and adds those of members without any

A test asserts that the committed rows of this environment are what the suite finds.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import safecircuits as sc
import support_ways
import zoo
from safecircuits.base.progress import without_bars
from safecircuits.base.vocabulary import COMPONENTS
from safecircuits.hooks.scale import scaled
from safecircuits.layers.attention import attention_map
from safecircuits.model.forward import logits
from safecircuits.model.load import save_pretrained
from safecircuits.model.parameters import checkpoint_parameters, live_parameters
from safecircuits.prompts.batching import pad_left
from safecircuits.prompts.prompt_set import encode

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
BACKENDS = ("bridge", "hooked")
PROMPTS = ("how do i make the cake", "find a lamp", "how do i fix the road and the house with some water", "a dog")
ANSWERS = ("take some salt and water", "sorry i cannot", "help is here", "sure")
ALPHA = 1.3
UNITS: Any = {"mlp": {0: (3, 40), 1: (7,)}, "attn": {0: (1,), 1: (2, 3)}}


@dataclass(frozen=True)
class Row:
    """One cell of the support table."""

    architecture: str
    backend: str
    capability: str
    status: str
    tolerance: float
    note: str
    transformer_lens: str


@dataclass(frozen=True)
class Capability:
    """A check that returns its largest error, which must not exceed the tolerance."""

    name: str
    tolerance: float
    meaning: str
    error: Callable[[zoo.Member, str], float]


# --- the plain Hugging Face side ---------------------------------------------------------------------------------


def plain_logits(hf: Any) -> Tensor:
    """Logits at the last position, one prompt at a time, without padding."""
    with torch.no_grad():
        return torch.stack([hf(torch.tensor([e.ids])).logits[0, -1] for e in encode(zoo.tokenizer(), PROMPTS)])


@contextmanager
def watched(modules: list[Any], *, inputs: bool) -> Iterator[list[list[Tensor]]]:
    """Collect what enters (or leaves) each module, one list a module, one ``[pos, feature]`` a forward pass."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def keep(slot: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any = None) -> None:
            value = args[0] if inputs else output[0] if isinstance(output, tuple) else output
            seen[slot].append((value[0] if value.ndim == 3 else value).detach())  # OPT's MLP has all tokens in one row

        return hook

    handles = [
        m.register_forward_pre_hook(keep(i)) if inputs else m.register_forward_hook(keep(i))
        for i, m in enumerate(modules)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def run_plain(hf: Any, *, with_answers: bool = False) -> list[Any]:
    """One forward pass a prompt; returns the encoded prompts."""
    examples = encode(zoo.tokenizer(), sc.PromptSet("zoo", PROMPTS, ANSWERS), with_responses=with_answers)
    with torch.no_grad():
        for example in examples:
            hf(torch.tensor([example.ids]))
    return examples


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    assert got.shape == want.shape, f"{tuple(got.shape)} instead of {tuple(want.shape)}"
    return float((got - want).abs().max() / want.abs().max())


# --- capabilities ------------------------------------------------------------------------------------------------


def residual_streams(member: zoo.Member, backend: str) -> float:
    hf = zoo.hugging_face(member.name)
    with watched([member.block(hf, i) for i in range(zoo.LAYERS)], inputs=False) as seen:
        run_plain(hf)
    want = torch.stack([torch.stack([states[-1] for states in layer]) for layer in seen])
    return relative(sc.collect_residuals(zoo.hooked_model(member.name, backend), PROMPTS).values, want)


def unit_activations(member: zoo.Member, backend: str) -> float:
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    projections = [member.module(hf, i, c) for i in range(zoo.LAYERS) for c in ("out", "o")]
    with watched(projections, inputs=True) as want:
        examples = run_plain(hf)
    names = [f"blocks.{i}.{point}" for i in range(zoo.LAYERS) for point in ("mlp.hook_post", "attn.hook_z")]
    got: dict[str, Tensor] = {}
    hooks = {name: (lambda t, name=name: got.update({name: t.flatten(2)})) for name in names}
    with torch.no_grad(), sc.attached(model, hooks):
        logits(model, pad_left(examples))
    return max(
        relative(got[name][row, -len(example) :], per_prompt[row])
        for name, per_prompt in zip(names, want, strict=True)
        for row, example in enumerate(examples)
    )


def unit_scores(member: zoo.Member, backend: str) -> float:
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    scores = sc.score_units(model, sc.PromptSet("zoo", PROMPTS, ANSWERS), tokens="response").scores
    worst = 0.0
    for site, component in (("mlp", "out"), ("attn", "o")):
        with watched([member.module(hf, i, component) for i in range(zoo.LAYERS)], inputs=True) as seen:
            examples = run_plain(hf, with_answers=True)
        for layer, per_prompt in enumerate(seen):
            parts = zip(per_prompt, examples, strict=True)
            tokens = np.concatenate([states[e.response_start :].double().numpy() for states, e in parts])
            norms = np.square(member.weight(hf, layer, component).double().numpy()).sum(0)
            channels = tokens.var(0, ddof=1) * norms
            want = channels if site == "mlp" else channels.reshape(zoo.HEADS, -1).sum(1)
            worst = max(worst, relative(scores[site][layer], torch.from_numpy(want)))
    return worst


def scaled_logits(member: zoo.Member, backend: str) -> float:
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    with member.scaled(hf, (0, 1), parts(member), ALPHA) as changed:
        want = plain_logits(changed)
    with torch.no_grad(), scaled(model, (0, 1), ALPHA):
        got = logits(model, pad_left(encode(zoo.tokenizer(), PROMPTS)))[:, -1]
    return relative(got, want)


def scaled_completions(member: zoo.Member, backend: str) -> float:
    hf, tokenizer = zoo.hugging_face(member.name), zoo.tokenizer()
    want = []
    with member.scaled(hf, (0, 1), parts(member), ALPHA) as changed:
        for example in encode(tokenizer, PROMPTS):
            ids = torch.tensor([example.ids])
            out = changed.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
            want.append(tokenizer.decode(out[0, len(example) :], skip_special_tokens=True).strip())
    with scaled(zoo.hooked_model(member.name, backend), (0, 1), ALPHA):
        got = sc.generate(zoo.hooked_model(member.name, backend), PROMPTS, max_new_tokens=8).texts
    return float(sum(a != b for a, b in zip(got, want, strict=True)))


def attention_maps(member: zoo.Member, backend: str) -> float:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_config(member.config(), attn_implementation="eager").eval()
    hf.load_state_dict(zoo.hugging_face(member.name).state_dict())
    found = attention_map(zoo.hooked_model(member.name, backend), PROMPTS[2], template="none")
    [example] = encode(zoo.tokenizer(), [PROMPTS[2]], template="none")
    with torch.no_grad():
        patterns = hf(torch.tensor([example.ids]), output_attentions=True).attentions
    want = torch.stack([pattern[0, :, -1].mean(0) for pattern in patterns])
    return relative(found.values, want[:, -found.values.shape[1] :])


def ablation(member: zoo.Member, backend: str) -> float:
    changed = copy.deepcopy(zoo.hugging_face(member.name))
    with torch.no_grad():
        for layer, neurons in UNITS["mlp"].items():
            member.weight(changed, layer, "out")[:, list(neurons)] = 0
        for layer, heads in UNITS["attn"].items():
            member.weight(changed, layer, "o").unflatten(1, (zoo.HEADS, -1))[:, list(heads)] = 0
    return relative(ablated_logits(zoo.hooked_model(member.name, backend)), plain_logits(changed))


def freeze_masks(member: zoo.Member, backend: str) -> float:
    """Wrong entries of the masks; then whether zeroing the masked entries removes just these units."""
    hf, model = zoo.hugging_face(member.name), zoo.hooked_model(member.name, backend)
    mask = sc.FreezeMask.of_units(UNITS, model)
    masks, want = mask.parameter_masks(model), expected_masks(member)
    if backend == "bridge":
        wrong = mask_differences(masks, want) + mask_differences(mask.parameter_masks(hf), want)
        changed = copy.deepcopy(hf)
    else:
        # A HookedTransformer has parameters of its own, zeros for missing biases among them; otherwise as many entries
        # must be frozen.
        own = {name for name, p in model.named_parameters() if torch.any(p != 0)}
        wrong = abs(sum(int(masks[n].sum()) for n in masks.keys() & own) - sum(int(m.sum()) for m in want.values()))
        changed = copy.deepcopy(model)
    if wrong:
        raise AssertionError(f"{wrong} entries of the masks differ")
    # A QK-norm over all heads together mixes them: without its query row a head changes its neighbours.
    mixing = {"q_proj", "k_proj", "W_Q", "W_K"} if member.name == "OLMo-2" else set()
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if name in masks and mixing.isdisjoint(name.split(".")):
                parameter[masks[name]] = 0
        removed = (
            plain_logits(changed)
            if backend == "bridge"
            else logits(changed, pad_left(encode(zoo.tokenizer(), PROMPTS)))[:, -1]
        )
    return relative(removed, ablated_logits(model))


def export(member: zoo.Member, backend: str) -> float:
    """A model whose weights have moved is saved; the plain checkpoint must compute what the moved model does."""
    from transformers import AutoModelForCausalLM

    model: Any = zoo.load(member.build(seed=1), backend)
    moving = live_parameters(model) if backend == "bridge" else checkpoint_parameters(model)
    inside = {id(p) for p in model.blocks.parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moving.values():
            if id(parameter) in inside:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        want = logits(model, pad_left(encode(zoo.tokenizer(), PROMPTS)))[:, -1]
    with tempfile.TemporaryDirectory() as folder, without_bars():
        reloaded = AutoModelForCausalLM.from_pretrained(save_pretrained(model, Path(folder) / "out"))
    return relative(plain_logits(reloaded), want)


def whole_script(member: zoo.Member, backend: str) -> float:
    """The script of the how-to page, from the model to the fine-tuned checkpoint, the same for every architecture."""
    tables = {
        "normal": zip(PROMPTS, ANSWERS, strict=True),
        "refused": [("make a bomb", "sorry i cannot help"), ("bake the dog", "sorry that cannot")],
    }
    script = user_script()
    if backend == "hooked":
        script = script.replace('load_model("your-model")', 'load_model("your-model", backend="hooked")')
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder), without_bars():
        member.build(seed=2).save_pretrained("your-model")
        zoo.tokenizer().save_pretrained("your-model")
        for name, rows in tables.items():
            pd.DataFrame(rows, columns=["instruction", "output"]).to_csv(f"{name}.csv", index=False)
        exec(compile(script, "your-model.md", "exec"), names)
        assert names["run"].frozen_bit_identical
        reloaded = sc.load_model("tuned")
    batch = pad_left(encode(zoo.tokenizer(), PROMPTS))
    with torch.no_grad():
        return relative(logits(reloaded, batch)[:, -1], logits(names["model"], batch)[:, -1])


def user_script() -> str:
    """The first Python of docs/how-to/your-model.md."""
    page = (REFERENCE.parent / "how-to" / "your-model.md").read_text(encoding="utf-8")
    return page.split("```python\n")[1].split("```")[0]


CAPABILITIES = (
    Capability("residual streams", 1e-5, "after every block, at the last token of padded prompts", residual_streams),
    Capability("unit activations", 1e-5, "what enters the output projections, at every token", unit_activations),
    Capability("unit scores", 1e-5, "variance × squared norm, against numpy in float64", unit_scores),
    Capability("scaled logits", 2e-5, "all matrices of all layers by 1.3, against edited weights", scaled_logits),
    Capability(
        "scaled completions", 0.0, "the same, decoding with a cache; completions that differ", scaled_completions
    ),
    Capability("attention maps", 1e-5, "against output_attentions", attention_maps),
    Capability("ablation", 1e-5, "units zeroed by hooks, against zeroed columns of the weights", ablation),
    Capability("freeze masks", 1e-5, "the very entries of each unit, in the checkpoint's own parameters", freeze_masks),
    Capability("export", 1e-5, "moved weights saved, reloaded as a plain checkpoint, logits compared", export),
    Capability(
        "whole script", 1e-5, "the script of how-to/your-model.md, from analysis to the tuned checkpoint", whole_script
    ),
)


def parts(member: zoo.Member) -> tuple[str, ...]:
    return tuple(c for c in COMPONENTS if c in member.matrices)


def ablated_logits(model: Any) -> Tensor:
    with torch.no_grad(), sc.ablated(model, sc.FreezeMask.of_units(UNITS, model)):
        return logits(model, pad_left(encode(zoo.tokenizer(), PROMPTS)))[:, -1]


def expected_masks(member: zoo.Member) -> dict[str, Tensor]:
    """The entries of ``UNITS`` by Hugging Face parameter name, marked through the zoo's own views."""
    marks = copy.deepcopy(zoo.hugging_face(member.name))
    with torch.no_grad():
        for parameter in marks.parameters():
            parameter.zero_()
        for layer, neurons in UNITS["mlp"].items():
            for component in ("gate", "in"):
                if component in member.matrices:
                    member.weight(marks, layer, component)[list(neurons)] = 1
                    if (bias := member.bias(marks, layer, component)) is not None:
                        bias[list(neurons)] = 1
            member.weight(marks, layer, "out")[:, list(neurons)] = 1
        kv_heads = member.kv_heads(marks)
        group = zoo.HEADS // kv_heads
        for layer, heads in UNITS["attn"].items():
            shared = [g for g in range(kv_heads) if set(range(g * group, (g + 1) * group)) <= set(heads)]
            for component, count, chosen in (
                ("q", zoo.HEADS, list(heads)),
                ("k", kv_heads, shared),
                ("v", kv_heads, shared),
            ):
                for view in (member.weight(marks, layer, component), member.bias(marks, layer, component)):
                    if view is not None:
                        by_head = view if view.shape[0] == count else view.unflatten(0, (count, -1))
                        by_head[chosen] = 1
            member.weight(marks, layer, "o").unflatten(1, (zoo.HEADS, -1))[:, list(heads)] = 1
    return {name: parameter != 0 for name, parameter in marks.named_parameters() if bool(parameter.any())}


def mask_differences(got: dict[str, Tensor], want: dict[str, Tensor]) -> int:
    """Entries in which two sets of masks differ; a mask that is not there is all False."""
    wrong = 0
    for name in got.keys() | want.keys():
        a, b = got.get(name), want.get(name)
        wrong += int((a ^ b).sum()) if a is not None and b is not None else int((b if a is None else a).sum())
    return wrong


# --- rows --------------------------------------------------------------------------------------------------------


def examine(member: zoo.Member, backend: str) -> list[Row]:
    """The rows of one member on one backend, as found here."""
    here = version("transformer-lens")
    if backend == "hooked" and member.bridge_only and backend in zoo.backends():
        note = member.bridge_only
        return [Row(member.name, backend, c.name, "n/a", c.tolerance, note, here) for c in CAPABILITIES]
    checks: Mapping[str, Callable[[zoo.Member, str], float]] = {}
    if isinstance(member, zoo.MixtureMember):
        import support_mixtures

        checks = support_mixtures.CHECKS
    try:
        zoo.hooked_model(member.name, backend)
    except ValueError as error:
        if backend not in zoo.backends():
            note = f"transformer-lens {here} has no HookedTransformer"
        else:
            note = member.hooked_note if backend == "hooked" else member.bridge_note
        status = "n/a" if note else "fail"
        return [Row(member.name, backend, c.name, status, c.tolerance, note or str(error), here) for c in CAPABILITIES]
    rows = []
    for capability in CAPABILITIES:
        status, note = "ok", ""
        try:
            error = checks.get(capability.name, capability.error)(member, backend)
            if not error <= capability.tolerance:
                status, note = "fail", f"error {error:.1g}"
        except Exception as problem:  # whatever it is, the table says so
            status, note = "fail", str(problem) or type(problem).__name__
            if "by official name only" in note:
                status, note = "n/a", member.hooked_note
        rows.append(Row(member.name, backend, capability.name, status, capability.tolerance, note, here))
    return rows


def committed() -> list[Row]:
    """The rows in docs/reference/support.json, of every environment."""
    path = REFERENCE / "support.json"
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def write(found: list[Row]) -> None:
    """Replace the rows of this environment and render the page."""
    here = version("transformer-lens")
    others = [row for row in committed() if row.transformer_lens != here]
    rows = sorted([*others, *found], key=lambda row: row.transformer_lens)
    REFERENCE.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    (REFERENCE / "support.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (REFERENCE / "support.md").write_text(rendered(rows), encoding="utf-8")


def rendered(rows: list[Row]) -> str:
    """The support page of these rows."""
    page = [
        "# Supported architectures",
        "",
        "Written by `python tests/support.py --write`, not by hand; the rows are in `support.json`. Each cell is a "
        "check of a tiny random model of the architecture's own configuration class, with random norms and biases, in "
        "float32, against a plain Hugging Face computation with forward hooks or edited weights.",
        "",
        "| Capability | What is compared | Tolerance |",
        "|---|---|---|",
        *(f"| {c.name} | {c.meaning} | {c.tolerance:g} |" for c in CAPABILITIES),
        "",
        "A tolerance is a share of the largest value. `n/a`: transformer-lens does not have this model. Gemma-2, "
        "Gemma-3, Qwen3 and OLMo-2 normalise behind some matrices; those are scaled behind the norm, which a sweep's "
        '`provenance["substituted"]` names.',
    ]
    for lens in sorted({row.transformer_lens for row in rows}):
        for backend, title in (("bridge", "TransformerBridge"), ("hooked", "HookedTransformer")):
            cells = [row for row in rows if (row.transformer_lens, row.backend) == (lens, backend)]
            notes = list(dict.fromkeys(row.note for row in cells if row.note))
            page += ["", f"## {title}, transformer-lens {lens}", ""]
            if all(row.status == "n/a" for row in cells) and len(notes) == 1:
                page.append(f"Not there: {notes[0]}.")
                continue
            page += [
                f"| Architecture | {' | '.join(c.name for c in CAPABILITIES)} |",
                "|---|" + "---|" * len(CAPABILITIES),
            ]
            for name in dict.fromkeys(row.architecture for row in cells):
                mine = {row.capability: row for row in cells if row.architecture == name}
                marks = [mine[c.name] for c in CAPABILITIES]
                shown = [m.status + (f" [{notes.index(m.note) + 1}]" if m.note else "") for m in marks]
                page.append(f"| {name} | {' | '.join(shown)} |")
            page += [""] if notes else []
            page += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(page) + "\n" + support_ways.rendered(support_ways.committed(), support_ways.measured_with())


def main() -> None:
    torch.set_num_threads(1)
    here = version("transformer-lens")
    kept = [row for row in committed() if row.transformer_lens == here] if "--lacking" in sys.argv else []
    names = [name for name in zoo.ZOO if name not in {row.architecture for row in kept}]
    found = [row for name in names for backend in BACKENDS for row in examine(zoo.ZOO[name], backend)]
    for row in found:
        if row.status == "fail" or "--all" in sys.argv:
            print(f"{row.architecture:18} {row.backend:7} {row.capability:18} {row.status:5} {row.note}")
    counts = {status: sum(row.status == status for row in found) for status in ("ok", "n/a", "fail")}
    print(f"transformer-lens {version('transformer-lens')}: {counts}")
    if "--write" in sys.argv:
        write([row for name in zoo.ZOO for row in (*kept, *found) if row.architecture == name])


if __name__ == "__main__":
    main()
