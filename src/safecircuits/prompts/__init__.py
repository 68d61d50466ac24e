"""Prompts: named sets of them, and how they are put to a model."""

from safecircuits.prompts.prompt_set import Encoded, PromptSet, as_prompt_set, encode
from safecircuits.prompts.templates import (
    PINNED,
    TEMPLATES,
    Chat,
    Template,
    chat_text,
    common_prefix_length,
    fill,
    render,
    resolve_template,
    without_ends,
)

__all__ = [
    "PINNED",
    "TEMPLATES",
    "Chat",
    "Encoded",
    "PromptSet",
    "Template",
    "as_prompt_set",
    "chat_text",
    "common_prefix_length",
    "encode",
    "fill",
    "render",
    "resolve_template",
    "without_ends",
]
