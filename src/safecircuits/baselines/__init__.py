"""Other people's ways to fine-tune, in the same loop: LoRA, virtual tokens, Lisa, reverse DPO, rewinding."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
