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
# # 6. Writing a benchmark for a new model
#
# You have a model that neither paper studied, and want numbers to compare with theirs. A benchmark is a short script:
# fixed prompts, each analysis once, every result saved, and one table with the measured numbers beside the published
# ones. We write it for the embedded `aligned` model; for yours, change `SUBJECT`.
#
# **After this you can**
#
# - write a benchmark that resumes where it was interrupted
# - put your numbers beside published ones, in units that can be compared
# - record what somebody needs to repeat it
#
# **Time**: 12 minutes to read and try; its cells take about a minute on one core.
# **Hardware**: any laptop; no GPU, nothing is downloaded. In Colab, run `%pip install safecircuits` first.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import matplotlib.pyplot as plt
import pandas as pd

import safecircuits as sc


def check(answer, right):
    """Say whether the answer to an exercise is right; it is `...` until you give one."""
    print("no answer yet" if answer is ... else "right" if right(answer) else "not right: try again")


SUBJECT = {"name": "aligned", "model": "aligned", "base": "base"}
OUT = "benchmark"
published = sc.papers.published_numbers

# %% [markdown]
# ## What is published
#
# The tables of both papers come with the package, one number per row (numbers only, retyped). Models are named by hub
# id.

# %%
theirs = published("safety_layers", table="Table 1", model="meta-llama/Llama-2-7b-chat-hf")
theirs.head()

# %% [markdown]
# A model that is in no table gives an empty frame, not an error, so a script can always ask.

# %%
len(published("safety_layers", model=SUBJECT["name"]))

# %% [markdown]
# ## What is measured
#
# First the prompts, fixed and fingerprinted. The paper uses 100 normal, 100 malicious and 721 over-rejection prompts;
# say so if you use others. For real ones: `sc.load_prompts("advbench", n=100)`, or your own file (tutorial 5).

# %%
data = {
    "normal": sc.organism.prompts("normal", n=100),
    "malicious": sc.organism.prompts("malicious", n=100),
    "over_rejection": sc.organism.prompts("over_rejection", n=150),
}
data["malicious"]

# %% [markdown]
# A run directory holds the results: `kept` computes a result and saves it, or reads it if the script runs again, so an
# interrupted script resumes where it was. Other settings or other prompts in the same folder are refused.

# %%
inputs = {name: prompts.fingerprint for name, prompts in data.items()}
run = sc.RunDirectory.open(OUT, "my benchmark", SUBJECT, inputs=inputs)
model = sc.load_model(SUBJECT["model"])
behavior = run.kept(
    "behavior",
    sc.Behavior,
    lambda: sc.evaluate(model, malicious=data["malicious"], over_rejection=data["over_rejection"]),
)
gaps = run.kept(
    "gaps",
    sc.layers.GapComparison,
    lambda: sc.compare_gaps(
        {SUBJECT["name"]: model, "base": SUBJECT["base"]}, data["normal"], data["malicious"], draws=300
    ),
)
behavior

# %%
gaps.plot()
plt.show()
print(gaps)

# %% [markdown]
# The base model is the first control: without it, the gap could come from anything that distinguishes the two kinds of
# prompts, such as their length. The intervals are bootstrapped over prompts.

# %%
found = run.kept(
    "localization",
    sc.Localization,
    lambda: sc.localize(model, data["over_rejection"], start=gaps.onsets[SUBJECT["name"]], alpha=1.2),
)
deciding = run.kept("decision", sc.DecisionLayers, lambda: sc.decision_layers(model, data["normal"], data["malicious"]))
print("scaling: ", found.verdict)
print("patching:", deciding.verdict)

# %% [markdown]
# ## Side by side
#
# What can be compared? Not counts: theirs are of 721 prompts, ours of 150 others. Not layer numbers: their models
# have 18 to 32 layers. So we compare shares, and layers as a fraction of the depth. Everything else keeps its own
# units.


# %%
def published_row(name):
    """Table 1 of one model in the units of the benchmark."""
    table = published("safety_layers", table="Table 1", model=name).set_index(["setting", "metric"])["value"]
    first, last = int(table["safety layers", "first"]), int(table["safety layers", "last"])
    depth = int(table["model", "n_layers"])
    counts = table.xs("over_rejected", level="metric")
    best = counts[f"lower [{first}, {last}]"]
    return {
        "model": name,
        "source": "published",
        "layers": f"[{first}, {last}]",
        "of": depth,
        "depth": f"{first / depth:.0%} to {(last + 1) / depth:.0%}",
        "alpha": float(table["alpha", "alpha"]),
        "over-rejected": f"{counts['unscaled'] / 721:.0%}",
        "scaled": f"{best / 721:.0%}",
        "note": "no interval published",
    }


def measured_row():
    first, last = found.layers
    depth, n = model.cfg.n_layers, len(found.baseline.refused)
    return {
        "model": SUBJECT["name"],
        "source": "measured here",
        "layers": str(found.layers),
        "of": depth,
        "depth": f"{first / depth:.0%} to {(last + 1) / depth:.0%}",
        "alpha": found.alpha,
        "over-rejected": f"{found.baseline.count / n:.0%}",
        "scaled": f"{found.lower.best.count / n:.0%}",
        "note": found.verdict.partition("; ")[2],
    }


names = published("safety_layers", table="Table 1")["model"].unique()
side_by_side = pd.DataFrame([measured_row(), *map(published_row, names)])
side_by_side

# %% [markdown]
# ### Exercise: a depth, by hand
#
# Layers are given as a fraction of the depth, since models have different numbers of layers. Compute where the
# located block of the measured model begins and ends, as fractions of its depth.

# %%
answer = ...  # yours: (begin, end), from 0 to 1

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# first, last = found.layers
# answer = first / model.cfg.n_layers, (last + 1) / model.cfg.n_layers
# ```
#
# </details>

# %%
check(answer, lambda given: f"{given[0]:.0%} to {given[1]:.0%}" == side_by_side["depth"].iloc[0])

# %%
counted = sum(found.baseline.refused.tolist()) / len(found.baseline.refused)
assert f"{counted:.0%}" == side_by_side["over-rejected"].iloc[0]
assert 0 <= found.layers.first <= found.layers.last < model.cfg.n_layers

# %% [markdown]
# If your model *is* in the papers, compare its two rows. If they differ, suspect in this order: the prompts, the
# refusal detector (tutorial 5: a published list found none of a model's refusals), the chat template and system
# prompt, decoding length, and the paper's α.
#
# ## What belongs beside the table
#
# Versions, seeds, fingerprints of the prompts, and what was *not* run, so that somebody else can repeat it. The run
# directory records most of it; what was not run is for you to say.

# %%
run.table("side_by_side", side_by_side, main=True)
run.say("not run: units (SSAH); fine-tuning (Table 2); harmful score, which needs a judge")
run.finish()
record = sc.load_run(OUT)
print({key: record[key] for key in ("command", "arguments", "inputs", "findings")})
record["files"]

# %% [markdown]
# ### Exercise: run it again
#
# What happens if the same benchmark is opened again in the same folder? Give the class of the exception.

# %%
answer = ...  # yours: a class

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = sc.results.AlreadyComplete
# ```
#
# </details>

# %%
try:
    sc.RunDirectory.open(OUT, "my benchmark", SUBJECT, inputs=inputs)
except Exception as error:
    raised = type(error)
check(answer, lambda given: given is raised)

# %% [markdown]
# ## Before you believe it
#
# - *Does it find what is known?* First set `SUBJECT` to `planted-layers`, where refusing was trained into layers 3 to
#   5. What a script finds there shows what its answer is worth elsewhere (tutorial 1: scaling is off, patching is
#   right).
# - *Would a control give it too?* Compare the base model with the aligned one, and random units with the ones found.
# - *How certain is it?* Here `found.verdict` says that other ranges do as well. A range without this is half a result.
# - *What is not comparable?* α was fixed here and searched in the paper; the prompts are another language; eight
#   layers are not thirty-two. Numbers side by side are not yet a replication: say which it is.
