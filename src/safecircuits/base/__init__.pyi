from .errors import JudgingError as JudgingError
from .vocabulary import LayerRange as LayerRange
