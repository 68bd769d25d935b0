"""Image repositories and image builds."""
