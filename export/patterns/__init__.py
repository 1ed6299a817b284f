"""Patterns: how a layer and its update are written down in operators; all of them compute `lora_edge.reference`.

Which one is taken is data, by the layer and its placement: see `export/variants.py`.
"""
