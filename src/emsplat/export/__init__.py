"""A run's Gaussians and maps for other programs."""
