"""The superficial safety alignment hypothesis (SSAH, ICLR 2026): neurons and heads that carry refusal."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
