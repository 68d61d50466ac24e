"""A real language model whose answer is known: SmolLM2-135M-Instruct, and its family with refusal planted in it."""
