"""Front doors and control plane: gateway, router, launchers, client stubs, command line.

This package imports no torch: a gateway is a light process.
"""
