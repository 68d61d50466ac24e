from .freeze_mask import FreezeMask as FreezeMask
