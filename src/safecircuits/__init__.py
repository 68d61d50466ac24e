"""Find the part of a language model that makes it refuse, prove it is that part, and keep it intact in fine-tuning.

The names that most analyses compose stand at the top (``sc.localize``); all others in their room
(``sc.units.coupled_scores``). What is public is typed once, in the ``__init__.pyi`` beside each ``__init__.py``: type
checkers and editors read it, and so does the import, which loads a name on first use, so that importing the package
costs nothing.

The examples in the docstrings go on from here, on an embedded model:

    >>> import safecircuits as sc
    >>> model = sc.load_model("aligned")
    >>> kinds = ("malicious", "normal", "over_rejection", "utility")
    >>> malicious, normal, over_rejection, utility = (sc.organism.prompts(kind, n=8) for kind in kinds)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
