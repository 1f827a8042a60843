"""A Llama-type model as a true DeepSeek-V3: read it, rearrange it, write it."""
