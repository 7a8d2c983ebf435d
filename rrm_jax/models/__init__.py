"""The Qwen2 decoder. Nothing outside this room knows the architecture."""
