from .ablate import ablated as ablated
from .collect import Residuals as Residuals
from .collect import collect_residuals as collect_residuals
from .scale import scaled as scaled
from .scale import substituted as substituted
