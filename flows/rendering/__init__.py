"""From chunks to manifests."""
