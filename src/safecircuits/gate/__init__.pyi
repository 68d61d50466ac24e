from .auditing import Audit as Audit
from .auditing import audit as audit
from .checks import Check as Check
from .ci import junit as junit
from .ci import sarif as sarif
from .policy import Policy as Policy
from .policy import read_policy as read_policy
