"""What ryzc generates from: kernel families, LLVM scaffolding and report pages."""
