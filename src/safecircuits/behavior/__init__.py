"""What a model does: its completions, whether they refuse, how safe and how useful it is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
