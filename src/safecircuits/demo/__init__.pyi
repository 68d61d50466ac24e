from .settings import DemoSettings as DemoSettings
from .study import DemoStudy as DemoStudy
from .study import run_demo as run_demo
