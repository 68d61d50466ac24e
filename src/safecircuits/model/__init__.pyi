from .attach import attached as attached
from .load import load_model as load_model
from .load import save_pretrained as save_pretrained
from .memory import MemoryEstimate as MemoryEstimate
from .memory import estimate_memory as estimate_memory
from .mixtures import MixtureShape as MixtureShape
from .sites import HookedModel as HookedModel
from .sites import ModelShape as ModelShape
