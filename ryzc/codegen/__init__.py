"""The LLVM level: a vector builder, instruction sets, module to object to shared object. Knows no kernel."""
