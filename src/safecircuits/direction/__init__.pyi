from .compare import DirectionComparison as DirectionComparison
from .compare import compare_directions as compare_directions
from .probe import DirectionGap as DirectionGap
from .probe import DirectionProbe as DirectionProbe
from .probe import probe_direction as probe_direction
from .variants import Suffixes as Suffixes
