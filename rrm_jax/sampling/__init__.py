"""Writing completions: the engine on this machine's devices, and servers behind the same protocol."""
