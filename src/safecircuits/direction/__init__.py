"""Does a model lean towards refusing or towards answering, token by token and block by block? (SSAH §3)"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
