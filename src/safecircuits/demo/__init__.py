"""The main job end to end on the embedded models."""

from safecircuits.demo.chain import demo_inputs, demo_into, run_demo
from safecircuits.demo.settings import DemoSettings

__all__ = ["DemoSettings", "demo_inputs", "demo_into", "run_demo"]
