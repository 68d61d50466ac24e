from .chain import run_demo as run_demo
from .settings import DemoSettings as DemoSettings
