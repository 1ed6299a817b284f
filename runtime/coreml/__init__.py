"""Core ML packages as graphs: their manifest, how adapters lie in them, and what runs them."""
