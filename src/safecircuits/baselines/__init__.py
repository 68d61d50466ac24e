"""Other people's ways to fine-tune, in the same loop: LoRA, virtual tokens, Lisa, reverse DPO, rewinding."""
