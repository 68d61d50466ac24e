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
# Does a language model that refuses harmful requests do it in a particular place? The *Safety Layers* paper says: in a
# small block of consecutive layers. We look for that block in a model small enough to run anywhere, then in one where
# the right answer is known, because its refusals were trained into layers 3 to 5 and nowhere else.
#
# Nothing is downloaded. With a model of your own, change the name that `load_model` gets and the prompts.

# %%
import matplotlib.pyplot as plt

import safecircuits as sc

aligned, base = sc.load_model("aligned"), sc.load_model("base")

# %% [markdown]
# ## What the model does
#
# Three kinds of prompts. `malicious` ones should be refused. `over_rejection` ones are harmless but sound dangerous:
# the paper's instrument. `normal` ones are plainly harmless.

# %%
normal, malicious, borderline = (
    sc.organism.prompts(kind, n=n) for kind, n in (("normal", 80), ("malicious", 80), ("over_rejection", 150))
)
for prompts in (normal, malicious, borderline):
    print(prompts.name, "|", prompts.prompts[0], "|", sc.generate(aligned, prompts.take(1)).texts[0])

# %%
sc.evaluate(aligned, malicious=malicious, over_rejection=borderline)

# %% [markdown]
# ## Step one: where do the two kinds part?
#
# After each layer, the residual stream at the prompt's last token is a direction. We compare pairs of prompts: two
# normal ones (N-N), two malicious ones (M-M), one of each (N-M). Where the N-M angle becomes wider than the N-N angle,
# the model has begun to tell them apart. The mean is over *all* pairs, so there is no seed.

# %%
gaps = {"aligned": sc.layer_gap(aligned, normal, malicious), "base": sc.layer_gap(base, normal, malicious)}
gaps["aligned"].to_frame().round(2)

# %%
from safecircuits.plots.layers import plot_gap

plot_gap(gaps)
plt.show()

# %% [markdown]
# The base model, which has never refused anything, has next to no gap: what we see comes from alignment. The shaded
# range is the *onset*, a written rule for "from where the gap appears to where it first levels off".

# %%
onset = gaps["aligned"].onset()
print(onset, onset.rule)

# %% [markdown]
# ## Step two: scale a block and count
#
# Multiplying all weights of a block by α > 1 strengthens what it does. If it refuses, more borderline prompts get
# refused. `scaled` does this by hooks for as long as the `with` block lasts; no weight is touched.

# %%
for layers in ((0, 1), (2, 5), (6, 7)):
    with sc.scaled(aligned, layers, alpha=1.2):
        print(layers, sc.evaluate(aligned, over_rejection=borderline))

# %% [markdown]
# Layers 0 and 1 move the count most, although by the gap they tell nothing apart. Scaling an early layer changes what
# every later one is given: a large count alone does not say that the block refuses.
#
# `localize` moves the upper bound of the block, then the lower, and takes the block of the largest count. Here α is
# fixed, to be quick; `alpha="search"` raises it in steps until the counts differ enough, which is the paper's rule.

# %%
found = sc.localize(aligned, borderline, start=onset, alpha=1.2)
found.plot()
plt.show()
print(found.verdict)

# %% [markdown]
# The verdict says whether the best block is apart from scaling nothing, given how many were tried, and which of its
# neighbours may be as good: counts of 150 prompts are noisy. Every one has an exact interval, paired over prompts.
#
# ## Step three: another question, asked directly
#
# Scaling looks at what a block *moves*. `decision_layers` asks where the decision *is*: it takes the residual stream
# after one layer from a malicious prompt, puts it into a harmless prompt's run (and the other way round), and sees how
# much of "refuse rather than answer" comes along. Before the deciding layers nothing does; after them everything does.
# No weight is scaled, no refusal is counted, and no base model is needed.

# %%
deciding = sc.decision_layers(aligned, normal, malicious)
deciding.plot()
plt.show()
print(deciding.verdict)

# %% [markdown]
# ## Step four: is it right?
#
# We have three answers now, and on `aligned` nobody knows the true one. On `planted-layers` we do: it learnt to refuse
# in layers 3 to 5, while every other weight stayed that of `base`.

# %%
planted = sc.load_model("planted-layers")
gap = sc.layer_gap(planted, normal, malicious)
answers = {
    "gap onset": gap.onset().layers,
    "scaling": sc.localize(planted, borderline, start=gap.onset(), alpha=1.2).layers,
    "decision layers": sc.decision_layers(planted, normal, malicious).layers,
}
truth = set(sc.organism.planted("planted-layers").layers)
print("planted", sorted(truth))
for name, layers in answers.items():
    both = truth & set(layers.indices)
    print(f"{name:16} {layers}  overlap {len(both) / len(truth | set(layers.indices)):.2f}")

# %% [markdown]
# ## Which range should you trust?
#
# For "where is refusing decided?", the decision layers: compare the overlaps above. The onset and the scaling search
# can run on past the block, because a gap goes on growing, and a count goes on moving, in layers that merely carry a
# decision made before. One model proves little, so `docs/ground_truth_layers.md` repeats this with other blocks, with
# each published way to search, and with always guessing the same block.
#
# What that does not say:
#
# - It was checked on small models in which every layer outside the block knows nothing of refusing. `aligned` learnt to
#   refuse in all its layers, and there the rule's answer, printed under the curve, is wide. The curve says why: the
#   decision builds up little by little. A sharp block is what one may find, not what there must be.
# - Scaling answers another question, what moves over-rejection most. Keep its range to compare with the paper's, and
#   read its verdict: `found.located` says whether anything was found, `found.within_noise` whether it is this block.
#
# ## A mask to take along
#
# Whatever range you choose becomes a `FreezeMask`, which fine-tuning honours by construction (tutorial 4).

# %%
mask = sc.FreezeMask.layers(deciding.layers)
print(mask.summary(aligned))
