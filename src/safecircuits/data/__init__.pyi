from .hub import HubSet as HubSet
from .hub import known_set as known_set
from .hub import revision_read as revision_read
from .sources import load_prompts as load_prompts
