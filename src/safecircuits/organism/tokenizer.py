"""The embedded models' tokenizer: one word, one token, and a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from safecircuits.organism.grammar import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
ROLES = ("<system>", "<user>", "<assistant>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + ': expected system, user or assistant.') }}"
    "{% endif %}"
    "{{ '<' + message['role'] + '> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast Hugging Face tokenizer over :func:`~safecircuits.organism.grammar.vocabulary`.

    It lower-cases, splits at white space and punctuation, and pads on the left. It adds no special token by
    itself: the chat template writes the BOS token, and an EOS token after each answer.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokens = (PAD, UNK, BOS, EOS, *ROLES, *vocabulary())
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        chat_template=CHAT_TEMPLATE,
    )
    return cast("PreTrainedTokenizerFast", tokenizer)


def chat(tokenizer: PreTrainedTokenizerFast, prompt: str, system: str | None = None) -> str:
    """The text put to the model for one prompt, up to and including the token that its answer follows."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
