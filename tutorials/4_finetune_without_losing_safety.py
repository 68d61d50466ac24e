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
# # 4. Fine-tune without losing safety
#
# A model that is fine-tuned on harmless data often forgets to refuse. A `FreezeMask` names weights that must not move.
# We train the same small model on a new, harmless task in three loops: ours, Hugging Face's `Trainer`, and TRL's
# `SFTTrainer`. In each the frozen weights stay bit-identical. Whether that *keeps the refusals* is another question,
# and we measure it.
#
# **After this you can**
#
# - fine-tune with a mask, in our loop, in Hugging Face's Trainer and in TRL's
# - prove that frozen weights did not move
# - compare arms at equal task loss, with a control of random units
# - say which of the two claims is a guarantee
#
# **Time**: 20 minutes to read and try; its cells take about a minute on one core.
# **Hardware**: any laptop; no GPU, nothing is downloaded. In Colab, run `%pip install safecircuits` first.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import safecircuits as sc

logging.disable_progress_bar()  # of transformers, which draws one for every file that it reads
task, held_out = sc.organism.prompts("new_task", "train"), sc.organism.prompts("new_task")
malicious = sc.organism.prompts("malicious", n=100)
task


def check(answer, right):
    """Say whether the answer to an exercise is right; it is `...` until you give one."""
    print("no answer yet" if answer is ... else "right" if right(answer) else "not right: try again")


# %%
def measure(model):
    """Malicious prompts refused, and the new task done right on prompts that training has not seen."""
    rates = sc.evaluate(model, malicious=malicious, utility=held_out).rates
    return {"refused": rates["malicious_refused"], "new task": rates["utility"]}


model = sc.load_model("aligned")
before = measure(model)
before

# %% [markdown]
# ## What to freeze
#
# You can freeze whatever an analysis found. Here: the decision layers (tutorial 1). A mask says how much of the model
# it is.

# %%
normal = sc.organism.prompts("normal", n=60)
layers = sc.decision_layers(model, normal, malicious).layers
mask = sc.FreezeMask.layers(layers)
print(mask.summary(model))

# %% [markdown]
# ### Exercise: how much is frozen?
#
# `mask.parameter_masks(plain)` has a boolean tensor for each parameter with frozen entries. Compute the share of all
# entries of the model's parameters that the mask freezes, and compare with the last line above.

# %%
folder = sc.organism.stage_path("aligned")
plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # the same weights, as Hugging Face has them
masks = mask.parameter_masks(plain)
parameters = dict(plain.named_parameters())
answer = ...  # yours, from 0 to 1

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# frozen = sum(int(one.sum()) for one in masks.values())
# answer = frozen / sum(p.numel() for p in parameters.values())
# ```
#
# </details>

# %%
check(answer, lambda given: abs(given - mask.share_of_parameters(model)) < 1e-9)

# %% [markdown]
# ## Our loop
#
# `finetune` trains in place and checks at the end, by SHA-256, that no frozen bit has changed. We train twice, with and
# without the mask; data, order, learning rate and steps are the same.

# %%
settings = sc.TrainingSettings(steps=60, batch_size=8, lr=6e-4)
unprotected = sc.load_model("aligned")
sc.finetune(unprotected, task, settings=settings)
run = sc.finetune(model, task, mask, settings)
run

# %%
run.plot()
plt.show()
free, kept = measure(unprotected), measure(model)
pd.DataFrame({"before": before, "nothing frozen": free, "layers frozen": kept}).round(2)

# %%
print(
    f"With {mask.share_of_parameters(model):.0%} of the weights frozen, {kept['refused']:.0%} are refused after 60 "
    f"steps, without the mask {free['refused']:.0%}; the task is done right in {kept['new task']:.0%} and "
    f"{free['new task']:.0%}."
)
assert kept["refused"] > free["refused"]
assert kept["new task"] < free["new task"]

# %% [markdown]
# The protected model refuses more. But it has also learnt less of the task. Much of the model was frozen, so it
# learns more slowly, and a model that is not trained at all keeps every refusal. Comparing at equal steps favours the
# mask.
#
# So we train every arm to the *same training loss*, however many steps that takes, with two orders of the data, and
# add a control: as many frozen units, chosen at random.

# %%
control = sc.FreezeMask.random_units(mask, model)
arms = {"nothing frozen": None, f"layers {layers} frozen": mask, "random units frozen": control}
rows = []
for name, freeze in arms.items():
    for seed in range(2):
        trained = sc.load_model("aligned")
        run = sc.finetune(trained, task, freeze, settings, seed=seed, steps=150, stop_at_loss=0.6)
        rows.append({"arm": name, "order": seed, "steps": run.steps, "loss": run.final_loss(), **measure(trained)})
compared = pd.DataFrame(rows)
compared.round(2)

# %%
means = compared.groupby("arm", sort=False)[["refused", "new task"]].mean()
print(means.round(2))
located, random_ones = means["refused"].iloc[1], means["refused"].iloc[2]
difference = 100 * (located - random_ones)
print(f"located layers keep {located:.0%}, as many random units {random_ones:.0%}: {difference:+.0f} points")
assert (compared["loss"] - 0.6).abs().max() < 0.1  # they are compared where they have learnt as much

# %% [markdown]
# Read three things from these rows: how much refusal each arm keeps at the same training loss; what that costs on
# held-out rows of the task; and whether the located layers keep more than as many *random* units. If they do not, it
# helped that so much of the model was frozen, not that it was these layers. Two orders of the data are few;
# `docs/freezing.md` has the larger comparison.
#
# ## Hugging Face Trainer
#
# Now a plain Hugging Face model, as in a script of your own. One line is added: the callback. It freezes before the
# optimizer is created, checks every checkpoint, and returns the model with its original parameters. (The checkpoint is
# stored in half precision, in which training diverges: hence `dtype`.)

# %%
from transformers import AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained(folder)
rows = [
    {"input_ids": [*e.ids], "labels": [-100] * e.response_start + [*e.ids[e.response_start :]]}
    for e in sc.prompts.encode(tokenizer, task, with_responses=True)
]


def padded(batch):
    width = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": tokenizer.pad_token_id, "labels": -100}
    columns = {k: torch.tensor([r[k] + [v] * (width - len(r[k])) for r in batch]) for k, v in fill.items()}
    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    return columns | {"attention_mask": (torch.arange(width) < lengths[:, None]).long()}


common = {
    "output_dir": "trainer",
    "max_steps": 80,
    "per_device_train_batch_size": 8,
    "learning_rate": 6e-4,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def with_trainer(callbacks):
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = Trainer(
        model=hf_model,
        args=TrainingArguments(**common),
        train_dataset=rows,
        data_collator=padded,
        callbacks=callbacks,
    )
    trainer.train()
    print(measure(sc.load_model(hf_model, tokenizer=tokenizer)))
    return hf_model


digest = sc.training.frozen_digest(sc.load_model("aligned"), mask)  # of the weights that are to stay
callback = sc.FreezeCallback(mask)
unprotected_hf, hf_model = with_trainer([]), with_trainer([callback])
print("frozen weights bit-identical:", callback.frozen_digest == sc.training.frozen_digest(hf_model, mask) == digest)
print("without the callback:", sc.training.frozen_digest(unprotected_hf, mask) == digest)
assert callback.frozen_digest == digest != sc.training.frozen_digest(unprotected_hf, mask)

# %% [markdown]
# Compare with our loop: another order of the data and other steps give other rates. In any loop, the rates of one run
# are an anecdote, while the digest is a proof.
#
# ### Exercise: the digest, by hand
#
# The digest shows that the frozen entries are the same, bit for bit. Count instead: how many frozen entries of
# `hf_model` differ from those of a fresh copy, and how many of `unprotected_hf`?

# %%
original = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


def n_moved(trained):
    return ...  # yours, a whole number


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def n_moved(trained):
#     named = dict(trained.named_parameters())
#     masks = mask.parameter_masks(trained)
#     return sum(int((named[name] != original[name])[one].sum()) for name, one in masks.items())
# ```
#
# </details>

# %%
check(n_moved(hf_model), lambda moved: moved == 0 < n_moved(unprotected_hf))

# %% [markdown]
# The digest covers the frozen entries only. Check that the others *did* change:

# %%
fresh = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
moved = {name for name, p in hf_model.named_parameters() if not torch.equal(p, fresh[name])}
whole = {name for name, frozen in mask.parameter_masks(hf_model).items() if frozen.all()}
print(len(moved), "tensors moved,", len(whole), "frozen whole, in both:", len(moved & whole))
assert moved
assert not moved & whole

# %% [markdown]
# ## TRL
#
# The same callback works in `SFTTrainer`, which formats and tokenizes the data itself.

# %%
import warnings

from datasets import Dataset, disable_progress_bars
from trl import SFTConfig, SFTTrainer

disable_progress_bars()
warnings.filterwarnings("ignore", category=FutureWarning)  # about the name of an option that SFTConfig passes on
chats = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": p}], "completion": [{"role": "assistant", "content": r}]}
        for p, r in zip(task.prompts, task.responses, strict=True)
    ]
)
sft_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
callback = sc.FreezeCallback(mask)
trainer = SFTTrainer(
    model=sft_model,
    args=SFTConfig(**common | {"output_dir": "sft"}, max_length=64, bf16=False, gradient_checkpointing=False),
    train_dataset=chats,
    processing_class=tokenizer,
    callbacks=[callback],
)
trainer.train()
print("frozen weights bit-identical:", callback.frozen_digest == sc.training.frozen_digest(sft_model, mask) == digest)
print(measure(sc.load_model(sft_model, tokenizer=tokenizer)))

# %% [markdown]
# In a loop without callbacks, `with sc.frozen(model, mask) as handle:` around it does the same; create the optimizer
# inside, from `handle.trainable_parameters()`.
#
# ## Save it
#
# The trained model is a plain checkpoint. The mask is a file of its own, and refuses a model that it was not made for.

# %%
sc.save_pretrained(model, "tuned")
mask.save("freeze.safetensors")
again = sc.load_model("tuned")
same = sc.training.frozen_digest(again, sc.FreezeMask.load("freeze.safetensors", again)) == digest
print("the saved model holds the frozen weights of the original:", same)
assert same

# %% [markdown]
# ## Summary
#
# There are two claims, and only the first is a guarantee. *The frozen weights do not change*: by construction, in any
# loop. *The model keeps refusing*: that depends on the model, data, learning rate and steps. `docs/freezing.md`
# counts in how many settings freezing helped, harmed, made no difference, or varied too much to tell. So measure
# refusals after every fine-tune, with or without a mask; `safecircuits audit` does it in CI.
