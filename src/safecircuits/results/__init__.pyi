from .load_record import load_run as load_run
from .result import Result as Result
from .run import AlreadyComplete as AlreadyComplete
from .run import RunDirectory as RunDirectory
