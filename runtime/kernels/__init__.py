"""How the operations of a model are computed: in torch, or in kernels of our own for CPUs."""
