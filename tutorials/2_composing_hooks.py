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
# There is no wrapper to learn. `load_model` gives a TransformerLens model, and whatever you do to it with
# TransformerLens's hooks stays in force while an analysis of ours runs.

# %%
from importlib.metadata import version

import torch
import transformer_lens

import safecircuits as sc

model = sc.load_model("aligned")
print(type(model).__module__, isinstance(model, transformer_lens.model_bridge.TransformerBridge))

# %% [markdown]
# ## Our tools are context managers
#
# They nest, in any order, and leave the model as it was.

# %%
malicious = sc.organism.prompts("malicious", n=60)
borderline = sc.organism.prompts("over_rejection", n=100)

every_second = sc.FreezeMask.of_units({"mlp": {7: range(0, 384, 2)}}, model)  # every second neuron of the last layer
with sc.scaled(model, (1, 5), alpha=1.35):
    print("scaled:            ", sc.evaluate(model, over_rejection=borderline))
    with sc.ablated(model, every_second):
        print("scaled and ablated:", sc.evaluate(model, over_rejection=borderline))
print("as before:         ", sc.evaluate(model, over_rejection=borderline))

# %% [markdown]
# ## Your hook inside our analysis
#
# A classic: the *refusal direction*, the difference of mean residual streams between harmful and harmless prompts at
# one layer. We collect the residuals with `collect_residuals`, then set the component along the direction to what it is
# on harmless prompts, with a plain TransformerLens hook.

# %%
layer = 3
harmful = sc.collect_residuals(model, sc.organism.prompts("malicious", "train", n=100)).at(layer)
harmless = sc.collect_residuals(model, sc.organism.prompts("normal", "train", n=100)).at(layer)
print("one row a prompt:", tuple(harmful.shape))
direction = torch.nn.functional.normalize(harmful.mean(0) - harmless.mean(0), dim=0)
usual = harmless.mean(0) @ direction


def as_if_harmless(resid, hook):
    return resid - (resid @ direction - usual)[..., None] * direction


mine = [(f"blocks.{layer}.hook_resid_post", as_if_harmless)]
print("as it is:             ", sc.evaluate(model, malicious=malicious, over_rejection=borderline))
with model.hooks(fwd_hooks=mine):
    print("without the direction:", sc.evaluate(model, malicious=malicious, over_rejection=borderline))

# %% [markdown]
# One direction in one layer decides. The analyses respect the hook as well: with it on, the angle gap is what is left
# of it from that layer on.

# %%
normal = sc.organism.prompts("normal", n=60)
before = sc.layer_gap(model, normal, malicious)
with model.hooks(fwd_hooks=mine):
    after = sc.layer_gap(model, normal, malicious)
for i, (a, b) in enumerate(zip(before.gap_deg.tolist(), after.gap_deg.tolist(), strict=True)):
    print(f"layer {i}: {a:5.1f}° {b:5.1f}°")

# %% [markdown]
# ## Our hooks inside your loop
#
# The other way round: `attached` puts hooks on by name, checks that the names exist, and that each one really fired.
# A misspelt hook name raises an error and is not silently ignored.

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
# A `HookedTransformer` of the same weights gives the same answers; TransformerLens 4 has only the bridge.

# %%
if version("transformer-lens").startswith("3."):
    hooked = sc.load_model("aligned", backend="hooked")
    same = sc.generate(hooked, malicious).texts == sc.generate(model, malicious).texts
    print("same completions on both backends:", same)
