from .chain import demo_inputs as demo_inputs
from .chain import demo_into as demo_into
from .chain import run_demo as run_demo
from .settings import DemoSettings as DemoSettings
