"""FreezeMask, the one object that leaves an analysis and enters training, and its file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
