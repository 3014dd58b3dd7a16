"""Multi-domain methods that are not adapters."""
