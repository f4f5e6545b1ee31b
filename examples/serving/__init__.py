"""The parts of examples/serve_llama.py."""
