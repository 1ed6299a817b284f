"""Tools on adapter files and checkpoints that need no engine: convert, extract, resize, merge, bake."""
