"""Worker processes: thin shells round runtime objects, and their gRPC service."""
