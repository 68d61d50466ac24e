"""Any source in, a hooked model out, and back: loading, forward passes, parameters, memory."""
