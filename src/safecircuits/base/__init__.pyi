from .errors import JudgingError as JudgingError
from .processes import alone as alone
from .processes import is_main as is_main
from .vocabulary import LayerRange as LayerRange
