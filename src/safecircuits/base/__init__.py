"""What everything else rests on, and what knows nothing of models: files, progress, statistics, words."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
