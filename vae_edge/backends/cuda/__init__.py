"""CUDA memory, copies and streams from Python, behind one small interface (`CudaMemory`) with three implementations."""
