"""The gateway: HTTP and gRPC front doors over one validator and one dispatcher."""
