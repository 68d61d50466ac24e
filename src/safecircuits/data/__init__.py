"""Prompts from anywhere: a file, a hub data set, a table, a list, or the embedded language."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
