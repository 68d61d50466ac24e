"""The main job end to end on a real language model in which refusal was planted, beside the known answer."""
