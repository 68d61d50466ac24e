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
# # 2. Composing your own hooks with ours
#
# There is no wrapper to learn. `load_model` returns a TransformerLens model, and your own TransformerLens hooks stay
# active while one of our analyses runs.
#
# **After this you can**
#
# - nest our interventions, in any order, with hooks of your own
# - find the refusal direction and ablate it in a running model
# - run any of our analyses with your hook active
# - check that a hook fired, and where
#
# **Time**: 12 minutes to read and try; its cells take about half a minute on one core.
# **Hardware**: any laptop; no GPU, nothing is downloaded. In Colab, run `%pip install safecircuits` first.

# %%
from importlib.metadata import version

import numpy as np
import torch
import transformer_lens

import safecircuits as sc


def check(answer, right):
    """Say whether the answer to an exercise is right; it is `...` until you give one."""
    print("no answer yet" if answer is ... else "right" if right(answer) else "not right: try again")


model = sc.load_model("aligned")
print(type(model).__module__, isinstance(model, transformer_lens.model_bridge.TransformerBridge))

# %% [markdown]
# ## Our tools are context managers
#
# They can be nested in any order, and leave the model as it was.

# %%
malicious = sc.organism.prompts("malicious", n=60)
borderline = sc.organism.prompts("over_rejection", n=100)

every_second = sc.FreezeMask.of_units({"mlp": {7: range(0, 384, 2)}}, model)  # every second neuron of the last layer
weights = {name: value.detach().clone() for name, value in model.named_parameters()}
as_it_is = sc.generate(model, borderline).texts
with sc.scaled(model, (1, 5), alpha=1.35):
    print("scaled:            ", sc.evaluate(model, over_rejection=borderline))
    with sc.ablated(model, every_second):
        print("scaled and ablated:", sc.evaluate(model, over_rejection=borderline))
print("as before:         ", sc.evaluate(model, over_rejection=borderline))
assert sc.generate(model, borderline).texts == as_it_is
assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())

# %% [markdown]
# ## Your hook inside our analysis
#
# As an example, take the *refusal direction*: the difference between the mean residual streams of harmful and
# harmless prompts at one layer. We collect the residual streams with `collect_residuals`. Then a plain
# TransformerLens hook sets the component along the direction to its mean on harmless prompts.

# %%
layer = 3
harmful = sc.collect_residuals(model, sc.organism.prompts("malicious", "train", n=100)).at(layer)
harmless = sc.collect_residuals(model, sc.organism.prompts("normal", "train", n=100)).at(layer)
print("one row a prompt:", tuple(harmful.shape))
direction = torch.nn.functional.normalize(harmful.mean(0) - harmless.mean(0), dim=0)
usual = harmless.mean(0) @ direction

# %% [markdown]
# Which axis is which? `collect_residuals` returns `[layer, prompt, d_model]`; `.at(layer)` and `.prompt(k)` select by
# name, so that a mean over the wrong axis cannot happen. We check it in numpy, one prompt at a time:

# %%
train = sc.organism.prompts("malicious", "train", n=100)
one_by_one = np.stack([sc.collect_residuals(model, train[k : k + 1]).at(layer).numpy()[0] for k in range(20)])
assert np.allclose(one_by_one, harmful[:20].numpy(), atol=1e-4)
by_hand = harmful.numpy().astype(float).mean(0) - harmless.numpy().astype(float).mean(0)
assert np.allclose(by_hand / np.linalg.norm(by_hand), direction.numpy(), atol=1e-5)

# %% [markdown]
# ### Exercise: how far apart are the two kinds along the direction?
#
# Project every prompt onto `direction`. By how many standard deviations (of the harmless prompts) do the means differ?

# %%
answer = ...  # yours, a number

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# along, beside = harmful @ direction, harmless @ direction
# answer = float((along.mean() - beside.mean()) / beside.std())
# ```
#
# </details>

# %%
gap_along = np.linalg.norm(by_hand) / (harmless.numpy() @ direction.numpy()).std(ddof=1)
check(answer, lambda given: abs(given - gap_along) < 0.01 * gap_along)

# %% [markdown]
# Now the plain TransformerLens hook, which sets the component to its mean on harmless prompts:


# %%
def as_if_harmless(resid, hook):
    return resid - (resid @ direction - usual)[..., None] * direction


mine = [(f"blocks.{layer}.hook_resid_post", as_if_harmless)]
intact = sc.evaluate(model, malicious=malicious, over_rejection=borderline)
with model.hooks(fwd_hooks=mine):
    without = sc.evaluate(model, malicious=malicious, over_rejection=borderline)
    after_it = sc.collect_residuals(model, malicious).at(layer) @ direction
print("as it is:             ", intact)
print("without the direction:", without)
assert torch.allclose(after_it, usual.expand_as(after_it), atol=1e-3)  # the hook did what it says
assert without.rates["malicious_refused"] < intact.rates["malicious_refused"]

# %% [markdown]
# Is it this direction, or would any direction do? A control answers that.
#
# ### Exercise: a random direction
#
# Do the same with a random direction of the same length: write `random_hook`, and compare the refusals.

# %%
torch.manual_seed(0)
random_direction = torch.nn.functional.normalize(torch.randn_like(direction), dim=0)
random_hook = ...  # yours: a function of (resid, hook)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# its_usual = harmless.mean(0) @ random_direction
#
#
# def random_hook(resid, hook):
#     return resid - (resid @ random_direction - its_usual)[..., None] * random_direction
# ```
#
# </details>


# %%
def keeps_refusing(hook):
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", hook)]):
        left = sc.evaluate(model, malicious=malicious)
        there = sc.collect_residuals(model, malicious).at(layer) @ random_direction
    print("without a random direction:", left)
    replaced = float(there.std()) < 1e-3
    return replaced and left.rates["malicious_refused"] > without.rates["malicious_refused"]


check(random_hook, keeps_refusing)

# %% [markdown]
# Analyses run with the hook too: with it attached, the angle gap is smaller from that layer on.

# %%
normal = sc.organism.prompts("normal", n=60)
before = sc.layer_gap(model, normal, malicious)
with model.hooks(fwd_hooks=mine):
    after = sc.layer_gap(model, normal, malicious)
for i, (a, b) in enumerate(zip(before.gap_deg.tolist(), after.gap_deg.tolist(), strict=True)):
    print(f"layer {i}: {a:5.1f}° {b:5.1f}°")
assert torch.allclose(before.gap_deg[:layer], after.gap_deg[:layer], atol=0.01)  # nothing changes before the hook
assert after.gap_deg[layer] < before.gap_deg[layer]

# %% [markdown]
# ## Our hooks inside your loop
#
# `attached` adds hooks by name, checks that the names exist, and checks that each hook really fired. A misspelt hook
# name is an error; it is not silently ignored.

# %%
seen = {}


def keep_norm(resid):
    seen["norm"] = resid.norm(dim=-1).mean().item()


tokens = model.to_tokens("how do i open the box ?")
with sc.attached(model, {"blocks.3.hook_resid_post": keep_norm}):
    model(tokens)
print(seen)

try:
    with sc.attached(model, {"blocks.3.hook_residual": keep_norm}):
        model(tokens)
except ValueError as error:
    print("error:", error)

# %% [markdown]
# ## Both kinds of TransformerLens model
#
# A `HookedTransformer` with the same weights gives the same answers. (TransformerLens 4 has only the bridge.)

# %%
if version("transformer-lens").startswith("3."):
    hooked = sc.load_model("aligned", backend="hooked")
    same = sc.generate(hooked, malicious).texts == sc.generate(model, malicious).texts
    print("same completions on both backends:", same)
    assert same

# %% [markdown]
# ## Where to go on
#
# `sc.refusal_direction` finds the direction by the published selection rule, with controls, and can remove it from
# the weights (`safecircuits direction find --help`). Tutorial 3 asks which units write this direction.
