"""Ways to fine-tune beside the plain one: of each method one settings class with its trainer, registered by name.

``finetune(model, data, mask, method=Lora(r=16))`` trains with one, and an arm of a study holds one. Another method is
another file in this folder; see ``safecircuits.training.method``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
