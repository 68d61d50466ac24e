from .hub import HubSet as HubSet
from .hub import known_set as known_set
from .sources import load_prompts as load_prompts
