"""Core ML: the components of a checkpoint as `.mlpackage` files whose layers take adapters as optional inputs.

Needs coremltools (the [coreml] extra). Data walks through `options` → `programs` (what is traced; `slotted` gives a
module its adapter inputs, `einsum` the Neural Engine's layout) → `convert` → `palettize` and `bisect` if asked, each
mended by `mend` → `verify` (the saved package against torch) → `write` (manifest and the rest of the folder).
"""
