"""What divides a device between two lanes for real, by name.

none      nothing: one lane
cores     disjoint sets of processor cores, for CPUs
greenctx  disjoint sets of streaming multiprocessors, for NVIDIA GPUs
"""
