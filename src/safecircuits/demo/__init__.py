"""The main job end to end on the embedded models."""

from safecircuits.demo.chain import run_demo
from safecircuits.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
