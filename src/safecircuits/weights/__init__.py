"""Single weights and the directions of a matrix: Wei et al. 2024, SparseGPT, and head probes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
