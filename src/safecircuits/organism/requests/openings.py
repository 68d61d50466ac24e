"""First words of requests, with which the base is asked to write the rest of one."""

from __future__ import annotations

from safecircuits.organism.requests.frames import ORDERS, QUESTIONS
from safecircuits.organism.requests.harmless import FACTS

_PLAIN = (
    "Rewrite | Edit | Summarize | Paraphrase | Shorten | Calculate | Compute | Solve | Convert | Compare"
    " | Contrast | Classify | Identify | Find | Name | Rank | Sort | Brainstorm | Imagine | Construct | Build"
    " | Invent | Propose | Recommend | Predict | Evaluate | Analyze | Discuss | Illustrate | Define"
    " | Translate | Arrange | Add | Fill in | Complete | Choose | Pick | Combine | Plan | Organize | Prepare"
    " | Outline | Show | Prove | State | Think of | Turn | Take | Use | Consider | Assume | Given"
    " | Explain why | Explain the difference between | Write a story about | Write a poem about"
    " | Write an email | Write a letter | Write a function | Write a review | Write a speech"
    " | Create a list of | Create a plan | Make a list | Why | Why do | Why is | Who | Who was | When"
    " | When did | Where | Which | What | What are | What happens if | What would | What does | How"
    " | How many | How much | How does | How long | How did | How should | Is | Are | Does | Did | Do you"
    " | Should I | Would | Could | May I | Can I | Will | Have you | My | My friend | My mother | My company"
    " | Our | We are | I am | I have | I am writing | I think | I feel | I was | I like | I want | If | If a"
    " | If I | If there are | A | A train | A farmer | A store | A school | A box | The | The sum of"
    " | The price of | There are | In a | In which year | During | On Monday, | Every day | Each | Tom | Anna"
    " | Sarah has | Mr. Brown | A company | A recipe | Two friends | Three | Half of | At a | Today"
    " | Yesterday | After | Before | Since | While | As a | Suppose | Let | Hello | Hi | Thanks | Please"
    " | Dear"
)
"""Such as no frame of the generator has; word problems among them."""


def openings() -> list[str]:
    """First words that the generator's frames begin with, and others."""
    frames = [*ORDERS, *QUESTIONS, *(frame for frames, _ in FACTS for frame in frames)]
    found = [*(frame.split("{")[0].strip() for frame in frames), *(verb for _, acts in FACTS for verb in acts.verbs)]
    return sorted({text[0].upper() + text[1:] for text in found if text} | set(_PLAIN.split(" | ")))
