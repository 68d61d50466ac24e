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
# # 3. Neuron attribution: from activations to groups of units, and back by ablation
#
# The SSAH paper looks at parts smaller than layers. A *unit* is one MLP neuron or one attention head, and units are
# sorted into four groups: safety-critical (SCU), utility-critical (UCU), redundant (RU), and complex (CU), which are
# the rest. We sort them in a model where the answer is known: in `planted-units`, refusing was trained into 192
# neurons only.
#
# **After this you can**
#
# - score every neuron and head, and sort them into the four groups
# - say what removing a group shows, compared with as many random units
# - compare scores by their whole ranking, not at one threshold
# - see which prompts drive a unit, and which tokens it writes
#
# **Time**: 20 minutes to read and try; its cells take about two minutes on one core.
# **Hardware**: any laptop; no GPU, nothing is downloaded. In Colab, run `%pip install safecircuits` first.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import matplotlib.pyplot as plt
import pandas as pd

import safecircuits as sc

model = sc.load_model("planted-units")


def check(answer, right):
    """Say whether the answer to an exercise is right; it is `...` until you give one."""
    print("no answer yet" if answer is ... else "right" if right(answer) else "not right: try again")


planted = sc.FreezeMask.of_units({"mlp": sc.organism.planted("planted-units").mlp_units}, model)
planted

# %% [markdown]
# ## From activations to scores
#
# We use two data sets with answers: refusals of malicious prompts, and right answers to ordinary ones. On each, every
# unit gets a score. The paper's is WIFV: how much the unit's activation *fluctuates* over the tokens of prompt and
# answer, times the size of its outgoing weights. We score on training prompts and measure on others.

# %%
refusals = sc.organism.prompts("malicious", "train", n=128)
answers = sc.organism.prompts("utility", "train", n=128)
safety, utility = sc.score_units(model, refusals), sc.score_units(model, answers)
safety

# %% [markdown]
# ## From scores to groups
#
# SCU have the highest safety score minus utility score, UCU the lowest, and RU the lowest sum. You choose how many:
# these are the paper's shares for Llama-2-7b-chat. Nothing is proved yet: a share of 1.3 % *makes* 1.3 % of the units
# SCU, in any model, even a random one.

# %%
groups = sc.classify_units(safety, utility, scu=0.013, ucu=0.133, ru=0.148)
print({name: f"{share:.1%}" for name, share in groups.shares().items()})

groups.plot()
plt.show()

# %% [markdown]
# ### Exercise: WIFV by hand
#
# From the statistics of one neuron, `safety.moments["mlp"]` (variance of its activation) and
# `safety.weight_norms["mlp"]` (squared norm of its outgoing weights), compute its safety score: neuron 7 of layer 3.

# %%
moments, norms = safety.moments["mlp"], safety.weight_norms["mlp"]
variance, norm = float(moments.variance[3, 7]), float(norms[3, 7])
answer = ...  # yours, a number

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = variance * norm
# ```
#
# </details>

# %%
check(answer, lambda given: abs(given / float(safety.scores["mlp"][3, 7]) - 1) < 1e-4)

# %% [markdown]
# ## What do they do?
#
# Before removing anything, look at the units: which prompts drive each one most, and which tokens' logits it raises
# directly at the position where the answer starts. The report of `safecircuits units score` shows the same
# interactively.

# %%
looked = {"malicious": refusals.at_most(40), "utility": answers.at_most(40)}
profiles = sc.units.unit_profiles(model, groups.top(8, "SCU"), looked, scores=groups)
profiles.to_frame()[["site", "layer", "unit", "adds to", "peak on malicious", "peak on utility"]].round(2)

# %% [markdown]
# ## What happens without them?
#
# A group deserves its name if ablating it has the effect that the name says, and ablating as many random units does
# not. `ablate_groups` measures both.

# %%
tests = {"malicious": sc.organism.prompts("malicious", n=60), "utility": sc.organism.prompts("utility", n=60)}
table = sc.ablate_groups(model, groups, controls=2, **tests)
table.plot()
plt.show()
frame = table.to_frame()
frame.round(2)

# %%
rows = {row.name: row for row in table.rows}
for name, row in rows.items():
    random_ones = [control.rates["malicious_refused"] for control in row.random_controls]
    print(
        f"without {name}: refusal {row.behavior.rates['malicious_refused']:.0%}, utility "
        f"{row.behavior.rates['utility']:.0%}; without as many random units refusal "
        f"{sum(random_ones) / len(random_ones):.0%}"
    )
scu = rows["SCU"]
assert scu.behavior.rates["malicious_refused"] < min(one.rates["malicious_refused"] for one in scu.random_controls)

# %% [markdown]
# Compare each bar with its diamond, the random units. If removing the RU changes nothing, but removing as many random
# units changes nothing either, then "redundant" says little: the model simply has units to spare.
#
# The result depends on a choice that the paper leaves open. Count the fluctuation over the answer's tokens only, as
# earlier code does, and compare the SCU's row with the one above:

# %%
on_answers = [sc.score_units(model, data, tokens="response") for data in (refusals, answers)]
others = sc.classify_units(*on_answers, scu=0.013, ucu=0.133, ru=0.148)
sc.ablate_groups(model, others, controls=0, **tests).to_frame().round(2)

# %% [markdown]
# Refusing is decided before the answer begins; the fluctuation during the answer is a consequence. And is 1.3 % much or
# little? To see that, we need the whole ranking, not one threshold.
#
# ## Another score: attribution
#
# WIFV does not consider what an activation *does*. Attribution does: it multiplies each activation's difference from
# its mean on normal prompts with the gradient of "refuse minus comply", the logit difference at the first answer
# token. One forward and one backward pass score all units of all layers.

# %%
normal = sc.organism.prompts("normal", "train", n=128)
attribution = sc.score_units(model, refusals, method="attribution", reference=normal)
attribution.provenance["answers"]

# %% [markdown]
# Which score is better? Ablate units one after the other, from the highest score down. With a good score, refusal is
# lost after few units and utility only late. Random units are the control.

# %%
counts = (1, 4, 8, 16, 32, 64, 192)
curves = {
    "WIFV": sc.ablation_curve(model, {n: groups.top(n) for n in counts}, **tests),
    "attribution": sc.ablation_curve(model, {n: attribution.top(n) for n in counts}, **tests),
}
control = sc.ablation_curve(model, {n: sc.FreezeMask.random_units(groups.top(n)) for n in counts}, **tests)
with sc.ablated(model, planted):
    truth = {"removed": 192, **sc.evaluate(model, **tests).rates}

fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for ax, (name, curve) in zip(axes, curves.items(), strict=True):
    for rate, color in (("malicious_refused", "tab:red"), ("utility", "tab:blue")):
        shares = [behavior.shares[rate] for behavior in curve.values()]
        ends = [[abs(share.rate - end) for share in shares for end in [share.interval[side]]] for side in (0, 1)]
        ax.errorbar(list(curve), [share.rate for share in shares], ends, marker="o", color=color, label=rate)
        ax.plot(list(control), [one.rates[rate] for one in control.values()], ":", color=color, label=f"{rate}, random")
        ax.plot(truth["removed"], truth[rate], "*", markersize=12, color=color)
    ax.set(xscale="log", xlabel=f"units removed, highest {name} first")
axes[0].legend(fontsize=7)
plt.show()


# %%
def first_below_half(curve):
    return next((n for n, behavior in curve.items() if behavior.rates["malicious_refused"] < 0.5), None)


random = sc.FreezeMask.random_units(planted)
rows = {"WIFV": groups.top(192), "attribution": attribution.top(192), "random": random}
hits = {name: (units & planted).n_units() for name, units in rows.items()}
pd.DataFrame(
    {
        "planted among 192": hits,
        "precision": {name: found / 192 for name, found in hits.items()},
        "units until refusal is halved": {name: first_below_half(curve) for name, curve in curves.items()},
    }
).round(2)

# %%
chance = 192 * planted.n_units() / (384 + 8) / 8
print(f"by chance {chance:.0f} of 192 would be planted")
assert min(hits["WIFV"], hits["attribution"]) > 2 * chance

# %% [markdown]
# Each has its strength. Attribution needs fewer units: compare how many each score takes to halve refusal. But it
# considers refusal only, so further down its ranking come units that utility needs as well. WIFV, with the utility
# score subtracted, takes more units and spares utility.
#
# Neither finds exactly the planted neurons: compare the precision with chance. The star shows the effect of removing
# exactly the planted ones. Refusal also passes through neurons that were never trained, which only pass on what the
# trained ones write: *planted* and *needed* are not the same.
#
# ### Exercise: precision and recall
#
# What share of the SCU is planted (precision), and what share of the planted neurons is among the SCU (recall)? Masks
# are sets: `&` is the intersection, `n_units()` counts.

# %%
answer = ...  # yours: (precision, recall)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# both = (groups["SCU"] & planted).n_units()
# answer = both / groups["SCU"].n_units(), both / planted.n_units()
# ```
#
# </details>

# %%
is_scu, is_planted = groups["SCU"].at("mlp"), planted.at("mlp")
shared = int((is_scu & is_planted).sum())
expected = shared / groups["SCU"].n_units(), shared / int(is_planted.sum())
check(answer, lambda given: max(abs(a - b) for a, b in zip(given, expected, strict=True)) < 1e-9)

# %% [markdown]
# ## A mask of units
#
# SCU can be chosen by attribution and the other groups by WIFV: `classify_units(..., scu_by=attribution)`. Every set
# of units is a `FreezeMask`, with unions, intersections and complements. Here is the union of what the score found
# and what was planted:

# %%
mask = groups["SCU"]
mask

# %%
print("found and planted:", (mask & planted).n_units("mlp"), "neurons")
(mask | planted).plot()
plt.show()
print((mask | planted).summary(model))

# %% [markdown]
# ## Three objects that should be one
#
# Others look for a block of *layers*, or for a *direction* in the residual stream, and report that refusal is there.
# All three can be compared as sets of units: a block is all units of its layers, and a direction is written by some
# units more than by others. `direction_writers` decomposes the difference between harmful and harmless prompts along
# the direction into the contribution of each neuron and each head.

# %%
harmful, harmless = refusals[:64], normal[:64]
direction = sc.direction.mean_directions(model, harmful, harmless).refusal(layer=5)
writers = sc.direction.direction_writers(model, direction, harmful, harmless)
writers.to_frame()[["layer", "attention", "mlp"]].round(2)

# %% [markdown]
# We compare the SCU, the top writers (as many as there are SCU), the layers in which refusing is decided, and the
# planted neurons. Sets of this size share units by chance, so each overlap is shown with what chance gives.

# %%
layers = sc.decision_layers(model, harmless, harmful).layers
objects = {
    "SCU": groups["SCU"],
    "top writers": writers.top(groups["SCU"].n_units()),
    "safety layers": sc.FreezeMask.layers(layers, model),
    "planted": planted,
}
overlap = sc.units.object_overlap(objects, model)
overlap.plot()
plt.show()
table = overlap.to_frame()[["a", "b", "n_a", "n_b", "both", "expected", "low", "high", "over_chance"]]
table.round(1)

# %% [markdown]
# Compare each pair with chance: the grey bars cover 95 % of chance overlaps. `docs/leaderboard.md` has the same table
# for all planted models, and which method finds which object at what cost.
#
# `docs/concepts/units.md` describes all the scores, and `docs/ground_truth_units.md` has their results on six models.
# `sc.score_comparison` draws the curves of all of them at once, and `sc.units.stability` tests whether other prompts
# would have found the same units. Tutorial 4 fine-tunes with a mask.
