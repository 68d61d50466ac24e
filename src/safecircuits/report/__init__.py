"""Pages of runs: of one, from what it saved, and of several, held against each other."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
