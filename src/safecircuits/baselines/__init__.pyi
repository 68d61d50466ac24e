from .lisa import LisaSettings as LisaSettings
from .lisa import lisa as lisa
from .lora import LoraSettings as LoraSettings
from .lora import lora as lora
from .reverse_dpo import reverse_dpo as reverse_dpo
from .rewind import rewind as rewind
from .rewind import rewound as rewound
from .virtual_tokens import virtual_tokens as virtual_tokens
