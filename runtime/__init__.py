"""The runtime: opens a bundle once and makes images; numpy and onnxruntime, never torch."""
