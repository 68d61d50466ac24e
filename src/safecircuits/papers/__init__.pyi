from .published import published_numbers as published_numbers
from .safety_layers.settings import StudyPrompts as StudyPrompts
from .safety_layers.settings import StudySettings as StudySettings
from .safety_layers.study import safety_layers_study as safety_layers_study
from .ssah.settings import SsahPrompts as SsahPrompts
from .ssah.settings import SsahSettings as SsahSettings
from .ssah.study import ssah_study as ssah_study
