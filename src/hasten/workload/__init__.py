"""What is computed: extended-Einsum cascades, workloads, and tracing them from a torch module."""
