"""Running bundles. Of the rest of ryzc it needs only ``bundle`` and ``targets``: neither llvmlite nor onnx."""
