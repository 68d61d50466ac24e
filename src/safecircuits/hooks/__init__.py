"""What is done to a running model: collect from it, scale it, ablate it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
