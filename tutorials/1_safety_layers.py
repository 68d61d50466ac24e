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
# # 1. Safety layers in ten minutes
#
# Does a language model refuse harmful requests in a particular place? The *Safety Layers* paper says: in a small
# block of consecutive layers. We look for that block in a model small enough to run anywhere, then in one where the
# right answer is known, because its refusals were trained into layers 3 to 5 and nowhere else.
#
# For a model of your own, change the name that is passed to `load_model`, and the prompts.
#
# **After this you can**
#
# - measure what a model refuses, and read the interval beside the number
# - find where harmful and harmless prompts diverge, and which layers decide
# - say what scaling a block shows and what it does not
# - compare a located block with one that is known
#
# **Time**: 15 minutes to read and try; its cells take about a minute and a half on one core.
# **Hardware**: any laptop; no GPU, nothing is downloaded. In Colab, run `%pip install safecircuits` first.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import matplotlib.pyplot as plt
import numpy as np

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
# ## Which range should you trust?
#
# To answer "where is refusing decided?", compare the overlaps above. The onset and the scaling search can extend
# beyond the block, because the gap keeps growing, and the count keeps changing, in later layers that only pass on a
# decision made before. One model proves little, so `docs/ground_truth_layers.md` repeats this with other blocks, with
# each published search, and with guessing the same block every time; `docs/ground_truth_real_layers.md` does it in a
# real language model, SmolLM2, with planted refusal. `sc.load_model("smollm2:layers-12-16")` is one of these.
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
