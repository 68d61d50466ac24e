"""Figures and the self-contained report, from results as plain data; ``report.figures`` also draws result objects."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
