from .hub import HubSet as HubSet
from .hub import known_set as known_set
from .hub import revision_read as revision_read
from .sources import load_chats as load_chats
from .sources import load_prompts as load_prompts
from .sources import load_training_data as load_training_data
