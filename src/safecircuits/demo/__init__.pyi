from .real.settings import RealDemoSettings as RealDemoSettings
from .real.study import RealDemoStudy as RealDemoStudy
from .real.study import run_real_demo as run_real_demo
from .settings import DemoSettings as DemoSettings
from .study import DemoStudy as DemoStudy
from .study import run_demo as run_demo
