"""From manifests to the film."""
