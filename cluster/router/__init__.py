"""Which workers serve a request: filters, scorers and a policy over one snapshot."""
