"""Safety Layers (Li et al., ICLR 2025): the block of layers in which harmful and harmless prompts part."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
