"""Files for `ray up`: one for each provider, and a check that finds what Ray accepts silently."""

PROVIDERS = ("aws", "azure", "gcp", "local")
