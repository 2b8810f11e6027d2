"""A running image server with OpenAI's images API (vLLM-Omni, SGLang and others) as generator."""
